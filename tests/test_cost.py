"""Costs of a training step beside those computed by hand, and memory beside what the profiler saw allocated."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from conftest import Numbers
from mmdiff.conditioning import Conditioner
from mmdiff.cost import kept, measure
from mmdiff.denoiser import Denoiser
from mmdiff.module import DiffusionModule
from mmdiff.nn.unet import UNet
from mmdiff.scaling import EDM
from mmdiff.schedules import Karras
from mmdiff.types import Batch

SIZE, WIDTH, BATCH = 1000, 600, 8


class Two(nn.Module):
    """Two matrices."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(SIZE, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, SIZE, bias=False))

    def forward(self, x, noise, context):
        return self.layers(x)


def module_of(network, **options):
    denoiser = Denoiser(network, EDM(), Conditioner(16))
    return DiffusionModule(denoiser, Numbers(SIZE), Karras(), torch.optim.Adam, **options)


def batch_of(*shape):
    return Batch(torch.randn(*shape), {})


def test_two_matrices_by_hand():
    cost = measure(module_of(Two()), batch_of(BATCH, 1, SIZE))
    product = 2 * BATCH * SIZE * WIDTH
    assert cost.flops == 5 * product  # two forward, two for the weights' gradients, one for the hidden layer's
    assert cost.parameters == 2 * SIZE * WIDTH
    assert cost.weights == cost.gradients == 4 * cost.parameters
    assert cost.optimizer == 2 * cost.weights + 2 * 4  # two moments, and a count for each matrix
    assert cost.average == 0
    # input of each matrix, and the error that is squared; levels and weights are a few numbers for each example
    assert cost.activations == pytest.approx(4 * BATCH * (2 * SIZE + WIDTH), abs=64 * BATCH)
    assert cost.memory == cost.weights * 4 + 8 + cost.activations


@pytest.mark.parametrize(("devices", "sent"), [(1, 0), (2, 1), (4, 1.5), (8, 1.75)])
def test_communication_by_hand(devices, sent):
    """Of each of N parts of the gradients a device sends N - 1 sums and N - 1 results."""
    cost = measure(module_of(Two()), batch_of(1, 1, SIZE))
    assert cost.all_reduce(devices) == sent * 8 * SIZE * WIDTH
    assert cost.sharded(devices) == 1.5 * sent * 8 * SIZE * WIDTH


def test_what_options_add():
    plain = measure(module_of(Two()), batch_of(BATCH, 1, SIZE))
    more = measure(module_of(Two()), batch_of(2 * BATCH, 1, SIZE), averaged=True, accumulated=3)
    assert more.flops == 6 * plain.flops
    assert more.activations == pytest.approx(2 * plain.activations, rel=0.01)
    assert more.average == plain.weights
    mixed = measure(module_of(Two()), batch_of(BATCH, 1, SIZE), mixed=True)
    # inputs in halves, the error not; and of the second matrix, whose input has a gradient, a copy in halves
    halves = 2 * (BATCH * (SIZE + WIDTH) + SIZE * WIDTH) + 4 * BATCH * SIZE
    assert mixed.activations == pytest.approx(halves, rel=0.01)
    module = module_of(Two())
    module.denoiser.network.layers[0].requires_grad_(False)
    frozen = measure(module, batch_of(BATCH, 1, SIZE))
    assert (frozen.weights, frozen.gradients) == (plain.weights, plain.weights // 2)
    assert frozen.flops == 3 / 5 * plain.flops


def allocated(loss) -> int:
    """Bytes that a forward pass leaves allocated, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        value = loss()
    assert value.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize("shape", [(3, 64), (2, 24, 20)])
def test_activations_are_what_is_allocated(shape):
    network = UNet(shape, 16, width=16, multipliers=(1, 2), blocks=1, attention=(1,))
    module, batch = module_of(network), batch_of(6, *shape)
    noise, sigma = torch.randn_like(batch.x), torch.full((6,), 2.0)
    loss = partial(module.loss, batch, sigma, noise)
    loss()
    assert kept(loss, module.parameters())[1] == pytest.approx(allocated(loss), rel=0.05)


def test_info_of_an_experiment(tiny, command, run_folder, tmp_path):
    def told(*options):
        ran = command("info", *tiny, *options, folder=tmp_path)
        assert (ran.status, ran.err) == (0, "")
        rows = [line.split() for line in ran.out.splitlines()[1:]]
        return {row[0]: float(next(word for word in row if word[0].isdigit())) for row in rows}

    state = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    parameters = sum(value.numel() for value in state.values())
    one, eight = told("data.batch_size=1"), told("devices=8")
    assert one["parameters"] == eight["parameters"] == pytest.approx(parameters / 1e6, abs=0.01)
    assert one["average"] == pytest.approx(4 * parameters / 2**20, abs=0.06)
    assert (one["all-reduce"], one["sharded"]) == (0, 0)
    assert eight["all-reduce"] == pytest.approx(1.75 * 4 * parameters / 2**20, abs=0.11)
    assert eight["in"] == pytest.approx(8 * eight["arithmetic"], rel=0.2)
    assert eight["arithmetic"] == pytest.approx(2 * one["arithmetic"], rel=0.2)  # debug=fast has batches of two
    assert not list(tmp_path.iterdir())


def test_mistakes(tiny, command, tmp_path):
    for given, named in (
        (["experiment=nosuch"], "experiment=nosuch does not exist"),
        ([*tiny, "devices=0"], "devices must be a whole number of at least 1, got 0"),
        (["experiment=audio/folder"], "data.root must be given"),
    ):
        ran = command("info", *given, folder=tmp_path)
        assert (ran.status, ran.err.startswith("mmdiff info: ")) == (1, True)
        assert named in ran.err
        assert re.search("Traceback", ran.err) is None
