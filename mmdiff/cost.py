"""What a training step costs: arithmetic and memory, measured on one step of the model, and communication, by formula.

docs/scale.md derives the formulas.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from mmdiff.module import DiffusionModule
from mmdiff.types import Batch


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one step of the optimizer, on each device; memory in bytes.

    Attributes:
        parameters: number of them.
        flops: floating-point operations of matrix products, convolutions and attention, forward and backward; a
            multiplication and an addition are two.
        weights: parameters and buffers.
        gradients: of the trainable parameters.
        optimizer: its state.
        average: second copy of the weights, for their average.
        activations: what the forward pass keeps for the backward pass.
    """

    parameters: int
    flops: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def memory(self) -> int:
        """All of it; a device needs more for what lives shortly, and for the libraries."""
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def all_reduce(self, devices: int) -> float:
        """Bytes that each device sends to average the gradients by a ring (Patarasu & Yuan 2009)."""
        return 2 * (devices - 1) / devices * self.gradients

    def sharded(self, devices: int) -> float:
        """Bytes that each device sends where weights are sharded, gathered twice and gradients scattered (ZeRO-3)."""
        return (devices - 1) / devices * (2 * self.weights + self.gradients)


def measure(
    module: DiffusionModule, batch: Batch, *, averaged: bool = False, mixed: bool = False, accumulated: int = 1
) -> Cost:
    """The cost of a step on a batch, which is taken: the module is not the same after it.

    Args:
        module: what trains.
        batch: of one device.
        averaged: whether the weights are averaged.
        mixed: whether the forward pass computes in bfloat16.
        accumulated: batches to a step of the optimizer.
    """
    parameters = list(module.parameters())
    trained = [p for p in parameters if p.requires_grad]
    held = [*parameters, *module.buffers()]
    sigma = module.train_schedule.draw(len(batch.x)).to(batch.x)
    if module.levels:
        sigma = module.levels(sigma, batch.x, module.train_schedule)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            return module.loss(batch, sigma, torch.randn_like(batch.x))

    with FlopCounterMode(display=False) as counter:
        value, activations = kept(loss, held)
        value.backward()
    optimizer = module.optimizer(trained)
    optimizer.step()
    state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
    return Cost(
        parameters=sum(p.numel() for p in parameters),
        flops=accumulated * counter.get_total_flops(),
        weights=_bytes(held),
        gradients=_bytes(trained),
        optimizer=_bytes(state),
        average=_bytes(parameters) if averaged else 0,
        activations=activations,
    )


def kept(loss: Callable[[], Tensor], held: Iterable[Tensor] = ()) -> tuple[Tensor, int]:
    """The loss, and the bytes that its graph keeps for the backward pass beside what is held anyway.

    Storage that several operations keep counts once. Blocks that recompute their activations keep their inputs, which
    count only where another operation keeps them too.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = loss()
    return value, sum(sizes.values())


def report(cost: Cost, devices: int) -> str:
    """A table for people."""
    rows = [("parameters", f"{cost.parameters / 1e6:.2f} M"), ("arithmetic", f"{cost.flops / 1e9:.2f} GFLOP")]
    rows += [
        (name, f"{getattr(cost, name) / 2**20:.1f} MiB")
        for name in ("weights", "gradients", "optimizer", "average", "activations", "memory")
    ]
    rows += [
        ("all-reduce", f"{cost.all_reduce(devices) / 2**20:.1f} MiB sent by each of {devices}"),
        ("sharded", f"{cost.sharded(devices) / 2**20:.1f} MiB sent by each of {devices} instead"),
        ("in all", f"{cost.flops * devices / 1e9:.2f} GFLOP a step"),
    ]
    return "\n".join(f"{name:12} {value}" for name, value in rows)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
