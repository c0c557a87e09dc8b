"""What the data tell before training: scales, labels and ranges become configuration."""

import pytest
import torch
from omegaconf import OmegaConf

from mmdiff.data import DataModule
from mmdiff.fitting import adopt, fit_config, infer_embedders

EMBEDDER = "mmdiff.conditioning."


def examples(*conds: dict) -> list:
    return [(torch.tensor([[1.0, 2.0, 3.0, float(i)]]), cond) for i, cond in enumerate(conds)]


def make(conds: list[dict], embedders: dict | None, modality: dict | None = None) -> tuple:
    config = OmegaConf.create(
        {
            "modality": {"_target_": "conftest.Numbers", "size": 4} | (modality or {}),
            "conditioner": {"features": 8, "embedders": embedders},
        }
    )
    from hydra.utils import instantiate

    return config, DataModule(examples(*conds), instantiate(config.modality), held_out=1)


CONDS = [{"mood": "b", "speed": 1}, {"mood": "a", "speed": 3.0}, {"mood": None}, {"mood": "b", "speed": 8}]


def test_every_condition_gets_an_embedder():
    config, data = make(CONDS, None)
    fit_config(config, data)
    embedders = OmegaConf.to_container(config.conditioner.embedders, resolve=True)
    assert embedders["mood"] == {"_target_": EMBEDDER + "ClassEmbedder", "features": 8, "classes": ["a", "b"]}
    speed = embedders["speed"]
    assert speed == {
        "_target_": EMBEDDER + "NumberEmbedder",
        "features": 8,
        "mean": 4.0,
        "std": pytest.approx(26**0.5 / 3**0.5),
    }


def test_data_without_conditions():
    config, data = make([{}] * 4, None)
    fit_config(config, data)
    assert config.conditioner.embedders == {}


def test_what_is_given_is_kept():
    given = {
        "mood": {"_target_": EMBEDDER + "ClassEmbedder", "features": 8, "classes": ["z", "a", "b"]},
        "speed": {"_target_": EMBEDDER + "NumberEmbedder", "features": 8, "mean": 0.5, "std": None},
    }
    config, data = make(CONDS, given, {"mean": 5.0, "std": None})
    fit_config(config, data)
    assert config.conditioner.embedders.mood.classes == ["z", "a", "b"]
    assert config.conditioner.embedders.speed.mean == 0.5
    assert config.conditioner.embedders.speed.std == pytest.approx((26 / 3) ** 0.5)
    assert config.modality.mean == 5.0
    assert config.modality.std > 0
    assert (data.modality.mean, data.modality.std) == (5.0, config.modality.std)


def test_scales_come_from_training_examples_alone():
    config, data = make(CONDS, {}, {"mean": None, "std": None})
    fit_config(config, data)
    seen = torch.cat([media for media, _ in data.train])
    assert config.modality.mean == pytest.approx(seen.mean().item())
    assert config.modality.std == pytest.approx(seen.std().item())


def test_an_embedder_without_data():
    config, data = make(
        CONDS, {"pitch": {"_target_": EMBEDDER + "NumberEmbedder", "features": 8, "mean": None, "std": 1.0}}
    )
    message = r"conditioner\.embedders\.pitch: the data have no such condition; they have mood, speed"
    with pytest.raises(ValueError, match=message):
        fit_config(config, data)


def test_free_text_is_left_out():
    texts = {"caption": [f"text {i}" for i in range(10)], "name": ["x", "y"] * 5}
    with pytest.warns(UserWarning, match="condition caption is left out"):
        assert list(infer_embedders(texts)) == ["name"]


def test_text_is_read():
    embedders = infer_embedders({"text": ["a", "a", "a", "b"], "mood": ["x", "x", "y", "y"]})
    assert embedders["text"]["_target_"] == "mmdiff.text.ByteEmbedder"
    assert embedders["mood"]["_target_"] == EMBEDDER + "ClassEmbedder"


def test_text_that_the_data_do_not_have():
    config, data = make(CONDS, {"text": {"_target_": "mmdiff.text.ByteEmbedder", "features": 8}})
    with pytest.raises(ValueError, match=r"conditioner\.embedders\.text: the data have no such condition"):
        fit_config(config, data)


def test_one_number_that_never_changes():
    config, data = make([{"speed": 3}] * 4, None)
    fit_config(config, data)
    assert config.conditioner.embedders.speed.std > 0


def test_a_resumed_run_adopts_what_was_learned():
    saved, data = make(CONDS, None, {"mean": None, "std": None})
    fit_config(saved, data)
    other = [{"mood": "z", "speed": 100.0}] * 3
    config, data = make(other, None, {"mean": None, "std": None})
    adopt(config, saved)
    fit_config(config, data)
    assert config.modality == saved.modality
    assert config.conditioner.embedders.mood.classes == ["a", "b"]
    assert data.modality.mean == saved.modality.mean
