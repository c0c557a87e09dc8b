"""Training on numbers, a kind of data that the core has never heard of."""

from unittest import mock

import lightning as L
import pytest
import torch
import yaml
from torch import nn

from mmdiff.callbacks import EMA, ConfigInCheckpoint, Preview, Progress
from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.data import DataModule
from mmdiff.denoiser import Denoiser
from mmdiff.guidance import conditional
from mmdiff.levels import PerPart
from mmdiff.module import DiffusionModule
from mmdiff.plugins import core_conf
from mmdiff.sampling import Sampler
from mmdiff.scaling import EDM
from mmdiff.schedules import Karras, LogNormal
from mmdiff.solvers import heun
from mmdiff.types import Batch

MEANS = {"low": -1.5, "high": 1.5}


class Perceptron(nn.Module):
    """Two layers that see the numbers, the noise level and the context's vector."""

    def __init__(self, size: int = 4, features: int = 16, width: int = 128):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size + 1 + features, width), nn.SiLU(), nn.Linear(width, size))

    def forward(self, x, noise, context):
        return self.layers(torch.cat([x[:, 0], noise[:, None], context.vector], 1))[:, None]


def examples(count: int) -> list:
    """Numbers near the mean of their label, with a standard deviation of 0.2."""
    generator = torch.Generator().manual_seed(1)
    labels = ["low", "high"] * (count // 2)
    return [(MEANS[label] + 0.2 * torch.randn(1, 4, generator=generator), {"label": label}) for label in labels]


@pytest.fixture
def module(numbers) -> DiffusionModule:
    torch.manual_seed(0)
    conditioner = Conditioner(16, {"label": ClassEmbedder(16, ["low", "high"], drop=0.1)})
    denoiser = Denoiser(Perceptron(), EDM(sigma_data=1.5), conditioner)
    optimizer = lambda parameters: torch.optim.Adam(parameters, lr=5e-3)  # noqa: E731
    return DiffusionModule(denoiser, numbers, LogNormal(mean=-0.5, std=1.2), optimizer)


def make_trainer(folder, *callbacks, steps: int, **options) -> L.Trainer:
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "max_steps": steps,
            "callbacks": list(callbacks),
            "default_root_dir": folder,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": None,
            "check_val_every_n_epoch": 10**6,
        }
        | options
    )


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:The number of training batches", "ignore:.*LeafSpec:FutureWarning"
)


def test_learns_a_conditional_gaussian(module, numbers, tmp_path):
    data = DataModule(examples(512), numbers, batch_size=128, held_out=64)
    trainer = make_trainer(tmp_path, EMA(), steps=300)
    before = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    trainer.fit(module, data)
    after = trainer.validate(module, data, verbose=False)[0]["val/loss"]
    assert after < 0.4 * before
    sampler = Sampler(schedule=Karras(sigma_max=20), steps=16, solver=heun, guidance=conditional)
    module.eval()
    for label, mean in MEANS.items():
        x = sampler(module.denoiser, (1, 4), {"label": [label] * 256}, range(256))
        assert x.mean().item() == pytest.approx(mean, abs=0.15)
        assert x.std().item() == pytest.approx(0.2, abs=0.1)


def test_validation_loss_is_a_function_of_the_model(module, numbers, tmp_path):
    data = DataModule(examples(64), numbers, batch_size=8, held_out=32)
    trainer = make_trainer(tmp_path, steps=1)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(trainer.validate(module, data, verbose=False)[0]["val/loss"])
    assert losses[0] == losses[1]


def test_padding_carries_no_loss(module):
    module.eval()
    x = torch.randn(3, 1, 4)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[1, :, 2:] = False
    sigma, noise, cond = torch.tensor([0.1, 1.0, 5.0]), torch.randn_like(x), {"label": ["low", None, "high"]}
    masked = module.loss(Batch(x, cond, mask), sigma, noise)
    error = (module.denoiser(x + sigma[:, None, None] * noise, sigma, module.denoiser.conditioner(cond, 3)) - x) ** 2
    weighted = error * module.denoiser.scaling(sigma[:, None, None]).out ** -2
    expected = torch.stack([weighted[0].mean(), weighted[1, :, :2].mean(), weighted[2].mean()]).mean()
    torch.testing.assert_close(masked, expected)
    assert masked != module.loss(Batch(x, cond), sigma, noise)
    # The gradient reaches the output at data alone.
    (gradient,) = torch.autograd.grad(masked, module.denoiser.network.layers[2].bias)
    assert gradient.isfinite().all()


def test_levels_of_parts_and_coupled_noise_reach_the_loss(module, numbers, monkeypatch):
    seen = {}

    def loss(x0, sigma, noise, context, **_):
        seen.update(x0=x0, sigma=sigma, noise=noise)
        return torch.zeros(len(x0), requires_grad=True)

    monkeypatch.setattr(module.denoiser, "loss", loss)
    monkeypatch.setattr(type(module), "trainer", mock.Mock(world_size=1, accumulate_grad_batches=1))
    monkeypatch.setattr(type(module), "global_rank", 0)
    module.seed = 0
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    module.levels = PerPart(dim=1, given=1.0, independent=0.0)
    module.coupling = lambda x0, noise: x0 + 100
    batch = Batch(torch.randn(8, 1, 4), {}, None)
    module.training_step(batch, 0)
    assert seen["sigma"].shape == (8, 1, 4)
    assert (seen["sigma"] == 0).any()
    assert torch.equal(seen["noise"], batch.x + 100)


def test_conditions_without_an_embedder_are_ignored(module):
    module.eval()
    x, sigma = torch.randn(2, 1, 4), torch.ones(2)
    plain = module.loss(Batch(x, {"label": ["low", "high"]}), sigma, torch.ones_like(x))
    assert module.loss(Batch(x, {"label": ["low", "high"], "id": [1, 2]}), sigma, torch.ones_like(x)) == plain


def test_every_process_draws_its_own_noise(module, monkeypatch):
    """Of one step of two processes: unrelated noise, and a level of each stratum of the step."""
    drawn = []

    def loss(x0, sigma, noise, context, **_):
        drawn.append((sigma, noise.flatten()))
        return torch.zeros(len(x0), requires_grad=True)

    monkeypatch.setattr(module.denoiser, "loss", loss)
    monkeypatch.setattr(type(module), "trainer", mock.Mock(world_size=2, accumulate_grad_batches=1))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    batch = Batch(torch.randn(250, 1, 4), {}, None)
    for rank in range(2):
        module.seed, module.seen = 7, 1000
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.training_step(batch, 0)
        assert module.seen == 1500
    assert abs(torch.corrcoef(torch.stack([noise for _, noise in drawn]))[0, 1]) < 0.15
    levels = torch.cat([levels for levels, _ in drawn]).double().sort().values
    strata = LogNormal(mean=-0.5, std=1.2).quantile(torch.arange(501, dtype=torch.float64) / 500)
    assert ((strata[:-1] * (1 - 1e-6) <= levels) & (levels <= strata[1:] * (1 + 1e-6))).all()


def test_previews_on_disk(module, numbers, tmp_path):
    data = DataModule(examples(16), numbers, batch_size=4, held_out=6)
    sampler = Sampler(schedule=Karras(), steps=2, solver=heun, guidance=conditional)
    preview = Preview(sampler, tmp_path / "previews", count=3)
    every_two = {"val_check_interval": 2, "check_val_every_n_epoch": None, "enable_progress_bar": True}
    trainer = make_trainer(tmp_path, EMA(), preview, Progress(), steps=4, **every_two)
    trainer.fit(module, data)
    names = sorted(path.relative_to(tmp_path / "previews").as_posix() for path in tmp_path.glob("previews/**/*.*"))
    steps = ("step_0000002", "step_0000004")
    assert names == sorted([f"{s}.png" for s in steps] + [f"{s}/0000{i}.txt" for s in steps for i in range(3)])
    preview.count = 0
    preview.on_validation_epoch_end(trainer, module)
    assert len(list(tmp_path.glob("previews/*.png"))) == 2


def test_checkpoint_holds_the_averaged_weights(module, numbers, tmp_path):
    """Against an average made here of the weights after each step."""
    data = DataModule(examples(32), numbers, batch_size=8, held_out=2)
    gamma, history = 3.0, []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            history.append(module.denoiser.network.layers[0].weight.detach().clone())

    trainer = make_trainer(tmp_path, Record(), EMA(gamma), ConfigInCheckpoint({"a": 1}), steps=5)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert saved["config"] == {"a": 1}
    n = len(history)
    expected = sum(((i + 1) ** (gamma + 1) - i ** (gamma + 1)) / n ** (gamma + 1) * w for i, w in enumerate(history))
    averaged = saved["state_dict"]["denoiser.network.layers.0.weight"]
    torch.testing.assert_close(averaged, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(averaged, history[-1], rtol=1e-4, atol=1e-6)


def test_resuming_goes_on_from_the_step(module, numbers, tmp_path):
    data = DataModule(examples(32), numbers, batch_size=8, held_out=2)
    first = make_trainer(tmp_path, EMA(), steps=3)
    first.fit(module, data)
    first.save_checkpoint(tmp_path / "x.ckpt")
    second = make_trainer(tmp_path, EMA(), steps=7)
    second.fit(module, data, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert second.global_step == 7
    steps = {int(state["step"]) for state in second.optimizers[0].state.values()}
    assert steps == {7}


def test_previews_show_the_averaged_weights(module, numbers, tmp_path):
    shipped = list(yaml.safe_load((core_conf() / "callbacks" / "default.yaml").read_text()))
    assert shipped.index("preview") < shipped.index("ema")
    seen = []

    class Watch(Sampler):
        def __call__(self, denoiser, shape, cond, seeds, **arguments):
            seen.append(next(denoiser.network.parameters()).clone())
            return torch.zeros(len(seeds), *shape)

    sampler = Watch(schedule=Karras(), steps=1, solver=heun, guidance=conditional)
    callbacks = {"preview": Preview(sampler, tmp_path, count=1), "ema": EMA()}
    every_four = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    trainer = make_trainer(tmp_path, *(callbacks[n] for n in shipped if n in callbacks), steps=4, **every_four)
    trainer.fit(module, DataModule(examples(32), numbers, batch_size=4, held_out=6))
    assert torch.equal(seen[-1], next(module.denoiser.network.parameters()))  # training leaves the average there
