"""Networks for point clouds side by side: processor time of a training step on one thread, and what is learned in it.

`python benchmarks/pointcloud_networks.py [SECONDS]`: `PointCells` beside a transformer with attention between all
points (in the manner of Point-E, Nichol et al. 2022) and one over patches of voxels (of DiT-3D, Mo et al. 2023), both
of as many parameters and of the same parts. The networks take turns; a step is forward, backward and AdamW, the best
of three. With SECONDS each is then trained on furniture of 2048 points for that much processor time, at each of three
learning rates; the loss is that of held-out clouds and levels, the same for all.
"""

import math
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmdiff.conditioning import ClassEmbedder, Conditioner
from mmdiff.denoiser import Denoiser
from mmdiff.nn.blocks import modulate, normalize
from mmdiff.scaling import EDM
from mmdiff.schedules import LogNormal
from mmdiff.types import Context
from mmdiff_pointcloud.furniture import KINDS, Furniture
from mmdiff_pointcloud.modality import PointCloud
from mmdiff_pointcloud.network import Attention, LevelEmbedding, Modulated, PointCells, PointEmbedding, mlp

FEATURES, BATCH, ROUNDS = 256, 4, 3


class Trunk(nn.Sequential):
    """Self-attention blocks, all modulated."""

    def __init__(self, width: int, depth: int):
        layers = [lambda: Attention(width, 32), lambda: mlp(width, 4)]
        super().__init__(*[Modulated(width, width, layer()) for _ in range(depth) for layer in layers])

    def forward(self, x: Float[Tensor, "b s w"], level: Float[Tensor, "b 1 w"]) -> Float[Tensor, "b s w"]:
        none = x[:, :0]
        for i, layer in enumerate(self):
            x = layer(x, level) if i % 2 else layer(x, level, none)
        return x


class FullAttention(nn.Module):
    """Every point attends to every other."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.embed = PointEmbedding(3, width)
        self.level = LevelEmbedding(FEATURES, width)
        self.trunk = Trunk(width, depth)
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Float[Tensor, "b 3 n"], noise: Float[Tensor, "b"], context: Context) -> Float[Tensor, "b 3 n"]:
        level = self.level(noise[:, None], context.vector)
        h = self.trunk(self.embed(x.mT), level)
        return self.out(modulate(h, *self.modulation(level).chunk(2, -1))).mT


class VoxelPatches(nn.Module):
    """Points are averaged in voxels, patches of voxels attend to each other, points read their voxel back."""

    def __init__(self, width: int, depth: int, side: int = 32, patch: int = 4, channels: int = 32):
        super().__init__()
        self.side, self.patch, self.channels = side, patch, channels
        tokens = (side // patch) ** 3
        self.embed = nn.Linear(3, channels)
        self.places = nn.Parameter(torch.randn(tokens, width))
        self.level = LevelEmbedding(FEATURES, width)
        self.inward = nn.Conv3d(channels, width, patch, stride=patch)
        self.trunk = Trunk(width, depth)
        self.outward = nn.ConvTranspose3d(width, channels, patch, stride=patch)
        self.out = nn.Linear(2 * channels, 3)

    def forward(self, x: Float[Tensor, "b 3 n"], noise: Float[Tensor, "b"], context: Context) -> Float[Tensor, "b 3 n"]:
        features = self.embed(x.mT)
        voxel = self.voxel(x)[..., None].expand_as(features)
        grid = features.new_zeros(len(x), self.side**3, self.channels)
        grid = grid.scatter_reduce(1, voxel, features, "mean", include_self=False)
        h = self.inward(grid.mT.unflatten(2, [self.side] * 3))
        size = h.shape[2:]
        h = self.trunk(h.flatten(2).mT + self.places, self.level(noise[:, None], context.vector))
        grid = self.outward(normalize(h).mT.unflatten(2, size)).flatten(2).mT
        return self.out(torch.cat([features, grid.gather(1, voxel)], 2)).mT

    def voxel(self, x: Float[Tensor, "b 3 n"]) -> Int[Tensor, "b n"]:
        """Index of the voxel of each point; those beyond three standard deviations fall into the outermost."""
        place = ((x + 3) / 6 * self.side).long().clamp(0, self.side - 1)
        return (place[:, 0] * self.side + place[:, 1]) * self.side + place[:, 2]


def inputs(points: int) -> tuple[Tensor, Tensor, Context]:
    return torch.randn(BATCH, 3, points), torch.randn(BATCH), Context(vector=torch.randn(BATCH, FEATURES))


def stepper(network: nn.Module, points: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, noise, context = inputs(points)

    def step() -> None:
        F.mse_loss(network(x, noise, context), x).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def gigaflops(network: nn.Module, points: int) -> float:
    """Of a forward pass of one example; a multiplication and an addition are two."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(*inputs(points))
    return counter.get_total_flops() / BATCH / 1e9


Clouds = tuple[Float[Tensor, "b 3 n"], list[str]]
LEVELS = LogNormal(sigma_min=0.002, sigma_max=80.0, mean=-0.9, std=1.4)
"""Of `experiment=pointcloud/furniture`."""


def clouds(count: int, held_out: int, points: int) -> tuple[Clouds, Clouds]:
    """In model space with their kinds, to train on and held out."""
    data = Furniture(size=count + held_out, points=points)
    examples = [data[i] for i in range(count + held_out)]
    modality = PointCloud(points=points, normalize="none")
    modality = PointCloud(points=points, normalize="none", **modality.fit(media for media, _ in examples[:count]))
    x = modality.encode(torch.stack([media for media, _ in examples]))
    kinds = [cond["kind"] for _, cond in examples]
    return (x[:count], kinds[:count]), (x[count:], kinds[count:])


def learned(network: nn.Module, train: Clouds, held_out: Clouds, seconds: float, rate: float) -> tuple[float, int]:
    """Loss on held-out clouds after that much processor time, and the number of steps that fitted in."""
    embedder = ClassEmbedder(FEATURES, KINDS)
    model = Denoiser(network, EDM(), Conditioner(FEATURES, {"kind": embedder}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    start, steps = time.process_time(), 0
    while (spent := (time.process_time() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = rate * min(1, spent / 0.05) * (1 + math.cos(math.pi * spent)) / 2
        chosen = torch.randint(len(train[0]), (BATCH,), generator=generator)
        x, told = train[0][chosen], model.conditioner({"kind": [train[1][i] for i in chosen.tolist()]}, BATCH)
        model.loss(x, LEVELS.draw(BATCH).float(), torch.randn_like(x), told).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    model.eval()
    x, kinds = held_out
    sigma = LEVELS.quantile((torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)).float()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        parts = [slice(i, i + BATCH) for i in range(0, len(x), BATCH)]
        losses = [model.loss(x[s], sigma[s], noise[s], model.conditioner({"kind": kinds[s]}, BATCH)) for s in parts]
    return torch.cat(losses).mean().item(), steps


def main(seconds: float = 0) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks: dict[str, Callable[[int], nn.Module]] = {
        "PointCells tiny": lambda n: PointCells((3, n), FEATURES),
        "full attention, width 192, 9 blocks": lambda n: FullAttention(192, 9),
        "voxel patches, width 192, 9 blocks": lambda n: VoxelPatches(192, 9),
    }
    print("| network | points | parameters, M | GFLOP forward | ms / step |\n|---|---|---|---|---|")
    for points in (1024, 2048):
        built = {name: build(points) for name, build in networks.items()}
        steps = {name: stepper(network, points) for name, network in built.items()}
        best = dict.fromkeys(steps, float("inf"))
        for i in range(1 + ROUNDS):
            for name, step in steps.items():
                start = time.process_time()
                step()
                if i:
                    best[name] = min(best[name], 1000 * (time.process_time() - start))
        for name, network in built.items():
            parameters = sum(p.numel() for p in network.parameters()) / 1e6
            flops = gigaflops(network, points)
            print(f"| {name} | {points} | {parameters:.2f} | {flops:.1f} | {best[name]:.0f} |", flush=True)
    if not seconds:
        return
    train, held_out = clouds(1024, 64, 2048)
    print(f"\n| network | rate | steps in {seconds:g} s | loss of held-out clouds |\n|---|---|---|---|")
    for name, build in networks.items():
        for rate in (3e-4, 1e-3, 2e-3):
            torch.manual_seed(0)
            loss, count = learned(build(2048), train, held_out, seconds, rate)
            print(f"| {name} | {rate:g} | {count} | {loss:.4f} |", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
