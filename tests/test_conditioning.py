import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from mmdiff.conditioning import ClassEmbedder, Conditioner, DenseEmbedder, Embedder, NumberEmbedder, merge, unmix
from mmdiff.denoiser import Denoiser
from mmdiff.errors import DataError
from mmdiff.nn.unet import UNet
from mmdiff.scaling import EDM
from mmdiff.testing import check_conditioner
from mmdiff.types import Context


class Recorder(Embedder):
    """Remembers the values it was asked for."""

    def forward(self, values):
        self.seen = list(values)
        return Context(vector=torch.zeros(len(values), 2))


class Words(Embedder):
    """Two tokens per example, of which the second one is padding, and a dense signal."""

    def forward(self, values):
        n = len(values)
        return Context(torch.ones(n, 4), torch.ones(n, 2, 3), torch.tensor([[True, False]] * n), torch.ones(n, 1, 5))


def build(drop=0.1):
    embedders = {
        "kind": ClassEmbedder(8, ["saw", "sine", 7], drop=drop),
        "pitch": NumberEmbedder(8, mean=60.0, std=12.0, drop=drop),
    }
    return Conditioner(8, embedders).eval()


def test_context_has_one_vector_per_example():
    context = build()({"kind": ["saw", 7, None], "pitch": [60, 61.5, None]}, 3)
    assert context.vector.shape == (3, 8)
    assert (context.tokens, context.token_mask, context.dense) == (None, None, None)


@pytest.mark.parametrize("label", ["square", 8, "Saw"])
def test_an_unknown_class_is_answered_with_the_allowed_ones(label):
    with pytest.raises(ValueError, match=rf"cond\.kind: {label!r} .*saw, sine, 7"):
        build()({"kind": ["saw", label]}, 2)


def test_a_label_may_come_as_text():
    conditioner = build()
    assert torch.equal(conditioner({"kind": [7]}, 1).vector, conditioner({"kind": ["7"]}, 1).vector)


@pytest.mark.parametrize("value", ["high", [1], object()])
def test_a_number_must_be_one(value):
    with pytest.raises(ValueError, match=r"cond\.pitch: expected numbers"):
        build()({"pitch": [value]}, 1)


def test_a_number_may_come_as_text():
    conditioner = build()
    assert torch.equal(conditioner({"pitch": ["64.5"]}, 1).vector, conditioner({"pitch": [64.5]}, 1).vector)


def test_surplus_conditions_are_refused():
    with pytest.raises(ValueError, match=r"cond\.color .*kind, pitch"):
        build()({"kind": ["saw"], "color": ["red"]}, 1)
    with pytest.raises(ValueError, match=r"cond\.color .*unconditional"):
        Conditioner(8)({"color": ["red"]}, 1)


def test_an_unconditional_model_has_an_empty_context():
    assert Conditioner(8)({}, 3) == Conditioner(8).null(3) == Context()


@pytest.mark.parametrize("training", [False, True])
def test_unknown_dropped_and_left_out_are_the_same(training):
    """Dropping is made certain, so that values given while training end up dropped."""
    conditioner = build(drop=1.0)
    null = conditioner.null(3).vector
    conditioner.train(training)
    assert torch.equal(conditioner.null(3).vector, null)
    assert torch.equal(conditioner({}, 3).vector, null)
    assert torch.equal(conditioner({"kind": [None] * 3, "pitch": [None] * 3}, 3).vector, null)
    given = conditioner({"kind": ["saw", "sine", 7], "pitch": [50, 60, 70]}, 3).vector
    assert torch.equal(given, null) == training
    assert (given == null).all(1).any() == training


def test_nothing_is_dropped_outside_training_or_at_rate_zero():
    cond = {"kind": ["saw"] * 50, "pitch": [60] * 50}
    certain, never = build(drop=1.0), build(drop=0.0).train()
    never.drop = 0.0
    for conditioner in (certain, never):
        assert not (conditioner(cond, 50).vector == conditioner.null(50).vector).all(1).any()


@pytest.mark.parametrize("silent", [0.0, 0.2])
def test_dropout_rates_are_those_asked_for_and_independent(silent):
    torch.manual_seed(0)
    n, rates = 5000, {"a": 0.1, "b": 0.5}
    conditioner = Conditioner(2, {name: Recorder(rate) for name, rate in rates.items()}, drop=silent).train()
    conditioner({name: list(range(n)) for name in rates}, n)
    dropped = {name: [v is None for v in conditioner.embedders[name].seen] for name in rates}
    for name, rate in rates.items():
        assert binomtest(sum(dropped[name]), n, silent + (1 - silent) * rate).pvalue > 1e-3
        assert all(v in (None, i) for i, v in enumerate(conditioner.embedders[name].seen))
    both = sum(a and b for a, b in zip(dropped["a"], dropped["b"], strict=True))
    assert binomtest(both, n, silent + (1 - silent) * rates["a"] * rates["b"]).pvalue > 1e-3


def test_a_share_of_examples_of_which_nothing_is_said_is_a_probability():
    with pytest.raises(ValueError, match=r"conditioner\.drop must lie in"):
        Conditioner(4, drop=1.5)


@pytest.mark.parametrize("drop", [-0.1, 1.5, math.nan])
def test_drop_is_a_probability(drop):
    with pytest.raises(ValueError, match="drop"):
        ClassEmbedder(4, ["a"], drop=drop)


def test_class_vectors_differ_and_have_unit_variance():
    torch.manual_seed(0)
    embedder = ClassEmbedder(4096, list(range(5)))
    vector = embedder([*range(5), None]).vector
    assert torch.pdist(vector).min() > 1
    # A standard error of the variance of 4096 Gaussian draws is sqrt(2 / 4096) = 0.022.
    torch.testing.assert_close(vector.var(1), torch.ones(6), rtol=0, atol=0.11)


def test_numbers_are_told_apart_and_close_ones_are_close():
    torch.manual_seed(0)
    embedder = NumberEmbedder(256, mean=60.0, std=12.0).requires_grad_(False)
    pitches = torch.arange(40, 81).tolist()
    vector = embedder([*pitches, None]).vector
    assert torch.pdist(vector).min() > 0.5
    near = (embedder([60.0]).vector - embedder([60.01]).vector).norm()
    far = (embedder([60.0]).vector - embedder([66.0]).vector).norm()
    assert 0 < near < far / 20


def test_an_unknown_number_is_learned_and_leaves_the_others_alone():
    embedder = NumberEmbedder(8, mean=0.0, std=1.0)
    vector = embedder([1.0, None]).vector
    torch.testing.assert_close(vector[:1], embedder([1.0]).vector)
    vector[1].sum().backward()
    assert torch.equal(embedder.null.grad, torch.ones(8))
    assert not embedder.linear.weight.grad.any()


def test_std_of_a_number_is_positive():
    with pytest.raises(ValueError, match="std"):
        NumberEmbedder(8, mean=0.0, std=0.0)


def test_fit_learns_the_arguments_from_values():
    assert ClassEmbedder.fit(["b", "a", "b", "c"]) == {"classes": ["a", "b", "c"]}
    assert NumberEmbedder.fit([1, 2.0, "6"]) == pytest.approx({"mean": 3.0, "std": math.sqrt((4 + 1 + 9) / 3)})
    assert NumberEmbedder(4, **NumberEmbedder.fit([5, 5])).std > 0
    assert Recorder.fit([1, 2]) == {}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_merging_vectors_keeps_unit_variance(count):
    torch.manual_seed(0)
    vectors = torch.randn(count, 40, 1000)
    merged = merge([Context(vector=v) for v in vectors]).vector
    assert merged.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 40_000))
    assert merge([Context(vector=vectors[0])]).vector.equal(vectors[0])


def test_merging_joins_tokens_and_dense_signals():
    tokens, dense = torch.randn(2, 5, 3), torch.randn(2, 4, 5)
    merged = merge([Context(tokens=tokens), Words()([1, 2]), Context(dense=dense)])
    assert torch.equal(merged.vector, torch.ones(2, 4))
    assert torch.equal(merged.tokens, torch.cat([tokens, torch.ones(2, 2, 3)], 1))
    assert merged.token_mask.tolist() == [[True] * 6 + [False]] * 2
    assert torch.equal(merged.dense, torch.cat([torch.ones(2, 1, 5), dense], 1))
    assert merge([]) == Context()


def test_a_condition_has_one_value_per_example():
    conditioner = Conditioner(8, {"label": ClassEmbedder(8, ["a", "b"])})
    with pytest.raises(ValueError, match=r"cond\.label has 2 values for 3 examples"):
        conditioner({"label": ["a", "b"]}, 3)


def test_labels_that_read_alike_are_one_class():
    assert ClassEmbedder.fit([7, "7", "a"]) == {"classes": ["7", "a"]}


def test_what_is_no_mixture_stays_as_it_is():
    cond = {"kind": ["saw", None], "pitch": [60, 61]}
    conds, weights = unmix(cond, 2)
    assert (conds, weights.tolist()) == ([cond], [[1.0, 1.0]])
    assert unmix({}, 3)[0] == [{}]


def test_a_mixture_is_taken_apart():
    cond = {"kind": [{"saw": 3, "sine": 1}, "saw"], "pitch": [{60: 1, 70: 1}, 61]}
    conds, weights = unmix(cond, 2)
    first = [(c["kind"][0], c["pitch"][0], w) for c, w in zip(conds, weights[:, 0].tolist(), strict=True)]
    assert first == [("saw", 60, 0.375), ("saw", 70, 0.375), ("sine", 60, 0.125), ("sine", 70, 0.125)]
    assert weights[:, 1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert all((c["kind"][1], c["pitch"][1]) == ("saw", 61) for c in conds)


@pytest.mark.parametrize("mixture", [{}, {"saw": 0}, {"saw": -1, "sine": 2}, {"saw": None}])
def test_weights_of_a_mixture_are_positive(mixture):
    with pytest.raises(ValueError, match=r"cond\.kind: a mixture needs positive weights"):
        unmix({"kind": [mixture]}, 1)


def test_a_dense_signal_stays_as_it_is_and_is_marked(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8.0).reshape(2, 4))
    embedder = DenseEmbedder(**DenseEmbedder.fit([str(tmp_path / "a.npy")]))
    dense = embedder([str(tmp_path / "a.npy"), None, torch.ones(2, 4)]).dense
    assert dense.shape == (3, 3, 4)
    assert torch.equal(dense[0, :2], torch.arange(8.0).reshape(2, 4))
    assert dense[:, 2].tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4]
    assert not dense[1].any()
    check_conditioner(Conditioner(4, {"low": embedder}), {"low": [torch.ones(2, 4), torch.zeros(2, 4)]})


def test_a_dense_signal_has_its_shape(tmp_path):
    with pytest.raises(ValueError, match=r"cond\.low: expected signals of shape \(2, 4\), got \(2, 5\)"):
        Conditioner(4, {"low": DenseEmbedder([2, 4])}).eval()({"low": [torch.ones(2, 5)]}, 1)
    (tmp_path / "b.npy").write_text("no array")
    for name in ("b.npy", "none.npy"):
        with pytest.raises(DataError, match=f"{name}: is not a .npy file"):
            DenseEmbedder([2, 4])([str(tmp_path / name)])


def test_a_model_learns_to_use_a_dense_signal():
    """Data that are their dense signal plus little noise: knowing it, the loss at a high level nearly vanishes."""
    shape = (1, 8)
    conditioner = Conditioner(4, {"low": DenseEmbedder(shape, drop=0.2)})
    network = UNet(shape, 4, width=8, multipliers=(1,), blocks=1, attention=(), dense=2)
    denoiser = Denoiser(network, EDM(), conditioner).train()
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)
    for _ in range(100):
        low = torch.randn(16, *shape)
        x0, noise = low + 0.05 * torch.randn_like(low), torch.randn_like(low)
        loss = denoiser.loss(x0, 5.0, noise, conditioner({"low": list(low)}, 16)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    denoiser.eval()
    with torch.no_grad():
        low, noise = torch.randn(64, *shape), torch.randn(64, *shape)
        told, untold = (
            denoiser(low + 5 * noise, 5.0, c) for c in (conditioner({"low": list(low)}, 64), conditioner.null(64))
        )
    assert (told - low).square().mean() < 0.2
    # Without it the best estimate leaves the posterior variance 25 / 26.
    assert 0.8 < (untold - low).square().mean() < 1.3
