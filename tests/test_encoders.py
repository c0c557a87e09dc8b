"""Encoders of the library transformers: tiny ones with random weights, made here."""

import sys
import warnings

import pytest
import torch

from mmdiff.conditioning import Conditioner
from mmdiff.testing import check_conditioner


def test_without_the_library(monkeypatch):
    from mmdiff.encoders import PretrainedEmbedder

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers: pip install 'mmdiff\[text\]'"):
        PretrainedEmbedder(8, "anything")


@pytest.fixture(scope="module", params=["t5", "bert", "clip"])
def folder(request, tmp_path_factory):
    """A model of two narrow layers and a tokenizer of single characters."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    path = tmp_path_factory.mktemp(request.param)
    letters = ["<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789 ,."]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    torch.manual_seed(0)
    if request.param == "t5":
        sizes = {"d_model": 12, "d_kv": 6, "d_ff": 16, "num_layers": 2, "num_heads": 2}
        model = transformers.T5Model(transformers.T5Config(vocab_size=len(letters), **sizes))
    else:
        sizes = {"hidden_size": 12, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        if request.param == "bert":
            model = transformers.BertModel(transformers.BertConfig(vocab_size=len(letters), **sizes))
        else:
            text = {"vocab_size": len(letters), "eos_token_id": 2, **sizes}
            vision = {**sizes, "image_size": 8, "patch_size": 4}
            model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    model.save_pretrained(path)
    return path


@pytest.fixture
def build(folder, tmp_path):
    from mmdiff.encoders import PretrainedEmbedder

    def embedder(**options):
        torch.manual_seed(1)
        return PretrainedEmbedder(8, str(folder), **{"cache": str(tmp_path), "drop": 0.0} | options).eval()

    return embedder


def test_it_keeps_the_rules(build):
    for tokens in (False, True):
        cond = {"text": ["a low note", "", "a note that is longer"]}
        check_conditioner(Conditioner(8, {"text": build(tokens=tokens)}), cond)


def test_it_says_what_the_encoder_says(build, folder):
    import transformers

    embedder = build(tokens=True)
    context = embedder(["a low note", None])
    tokenizer, model = (getattr(transformers, kind).from_pretrained(folder) for kind in ("AutoTokenizer", "AutoModel"))
    inputs = tokenizer("a low note", return_tensors="pt")
    with torch.no_grad():
        encoder = model.text_model if hasattr(model, "text_model") else model.encoder
        states = (model if model.config.model_type == "bert" else encoder)(**inputs).last_hidden_state[0]
    torch.testing.assert_close(context.tokens[0, 1:], embedder.tokens(states))
    torch.testing.assert_close(context.vector[0], embedder.norm(embedder.vector(states.mean(0))))
    assert context.token_mask.sum(1).tolist() == [1 + len(states), 1]
    assert torch.equal(context.vector[1], embedder.null)


def test_each_text_is_encoded_once(build, monkeypatch, tmp_path):
    first = build()
    asked = []
    encode = type(first)._encode
    monkeypatch.setattr(type(first), "_encode", lambda self, text: asked.append(text) or encode(self, text))
    before = first(["a note", "A  note", "two"]).vector
    assert asked == ["a note", "two"]
    again = build()
    assert torch.equal(again(["a note", "a note", "two"]).vector, before)
    assert asked == ["a note", "two"]
    assert "_encoder" not in vars(again)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_its_weights_are_frozen_and_no_part_of_a_checkpoint(build):
    embedder = build(tokens=True)
    (embedder(["a note"]).tokens.sin().sum()).backward()
    assert set(embedder.state_dict()) == {
        "null",
        *(f"{m}.{p}" for m in ("vector", "tokens") for p in ("weight", "bias")),
    }
    assert all(p.grad is None for p in embedder._encoder[1].parameters())


def test_a_long_text(build):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        cut = build(length=6)(["abcdefgh", "abcdexyz"]).vector
    assert [str(w.message) for w in caught] == ["texts are read up to 6 tokens; the end of a longer one is left out"]
    assert torch.equal(cut[0], cut[1])


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from mmdiff.encoders import PretrainedEmbedder

    with pytest.raises(ValueError, match="nowhere is no folder and no name on the hub that can be read"):
        PretrainedEmbedder(8, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_the_commands(folder, tiny, train, command, tmp_path):
    options = [o for o in tiny if not o.startswith("experiment=")]
    encoder = ["conditioner=encoder", f"conditioner.embedders.text.model={folder}"]
    encoder += [f"conditioner.embedders.text.cache={tmp_path}/cache", "callbacks.preview.count=0"]
    assert train("experiment=audio/notes_text", *options, *encoder, folder=tmp_path).err == ""
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    asked = ["prompt=a low note", "count=1", "steps=1"]
    ran = command("sample", f"checkpoint={checkpoint}", *asked, folder=tmp_path)
    assert (ran.status, ran.err) == (0, "")
