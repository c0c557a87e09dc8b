"""A training step of our networks beside those of others, at equal forward FLOPs on the same input.

Each network runs in processes of its own, in turn with the other: forward, backward, AdamW; the fastest of the timed
steps and the peak memory beyond the imports count. Ours for clips is `network=video/unet_small`, its width, in steps
of 8, where the FLOPs are nearest to the other's. The image trunk is measured twice, on pixels and on patches of 2 by 2,
as every audio configuration has them. Attention is counted with the rest: FLOPs are read with the plain kernel, times
are taken with the one that PyTorch chooses.

    python benchmarks/video_networks.py            # the table, for one thread and two
    python benchmarks/video_networks.py bf16       # the same in mixed precision
    python benchmarks/video_networks.py NAME 1     # one network, one thread: FLOPs, seconds, MiB

Needs `pip install mmdiff[video,bench]`.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from itertools import count
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

CLIP = (2, 3, 8, 64, 64)
SPECTROGRAM = (4, 1, 64, 64)
FEATURES = 128
STEPS, ROUNDS = 4, 2

Build = Callable[[], tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]]


def ours(width: int, patch: int, shape: tuple[int, ...]) -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    from mmdiff.nn.unet import UNet
    from mmdiff.types import Context

    count, *size = shape
    if len(size) == 4:
        small = OmegaConf.load(files("mmdiff_video") / "conf/network/video/unet_small.yaml")
        network = instantiate(small, width=width, patch=patch)(size, FEATURES)
    else:
        network = UNet(size, FEATURES, width=width, multipliers=(1, 2, 4), blocks=2, attention=(2,), patch=patch)
    vector, noise = torch.randn(count, FEATURES), torch.randn(count)
    return network, lambda network, x: network(x, noise[: len(x)], Context(vector=vector[: len(x)]))


def unet3d() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    from video_diffusion_pytorch import Unet3D

    network = Unet3D(dim=32, dim_mults=(1, 2, 4, 8), channels=3, cond_dim=FEATURES)
    cond, noise = torch.randn(CLIP[0], FEATURES), torch.rand(CLIP[0])
    return network, lambda network, x: network(x, noise[: len(x)], cond=cond[: len(x)], null_cond_prob=0.0)


def unet3d_condition() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    from diffusers import UNet3DConditionModel

    network = UNet3DConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock3D", "CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D", "UpBlock3D"),
        layers_per_block=2,
        cross_attention_dim=FEATURES,
        attention_head_dim=32,
        norm_num_groups=8,
    )
    states, noise = torch.randn(CLIP[0], 1, FEATURES), torch.arange(CLIP[0])
    return network, lambda network, x: network(x, noise[: len(x)], states[: len(x)]).sample


def unet_spatio_temporal() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    from diffusers import UNetSpatioTemporalConditionModel

    network = UNetSpatioTemporalConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlockSpatioTemporal", *["CrossAttnDownBlockSpatioTemporal"] * 2),
        up_block_types=(*["CrossAttnUpBlockSpatioTemporal"] * 2, "UpBlockSpatioTemporal"),
        layers_per_block=2,
        transformer_layers_per_block=1,
        cross_attention_dim=FEATURES,
        num_attention_heads=(1, 2, 4),
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=96,
    )
    states, noise, ids = torch.randn(CLIP[0], 1, FEATURES), torch.arange(CLIP[0]), torch.ones(CLIP[0], 3)

    def call(network: nn.Module, x: Tensor) -> Tensor:
        count = len(x)
        return network(x.transpose(1, 2), noise[:count], states[:count], ids[:count]).sample.transpose(1, 2)

    return network, call


def unet2d() -> tuple[nn.Module, Callable[[nn.Module, Tensor], Tensor]]:
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=64,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=32,
        norm_num_groups=8,
    )
    noise = torch.arange(SPECTROGRAM[0])
    return network, lambda network, x: network(x, noise[: len(x)]).sample


PEERS: dict[str, tuple[str, Build, tuple[int, ...], tuple[int, ...]]] = {
    "unet3d": ("video-diffusion-pytorch Unet3D", unet3d, CLIP, (2,)),
    "unet3d_condition": ("diffusers UNet3DConditionModel", unet3d_condition, CLIP, (2,)),
    "unet_spatio_temporal": ("diffusers UNetSpatioTemporalConditionModel", unet_spatio_temporal, CLIP, (2,)),
    "unet2d": ("diffusers UNet2DModel", unet2d, SPECTROGRAM, (1, 2)),
}
"""Title, network, shape of the input, and the patches of ours."""


def flops(build: Build, shape: tuple[int, ...]) -> float:
    """Of a forward pass of one example."""
    network, call = build()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call(network, torch.randn(1, *shape[1:]))
    return counter.get_total_flops()


def measure(build: Build, shape: tuple[int, ...], mixed: bool) -> dict[str, float]:
    """Seconds of the fastest step, and MiB beyond what the imports took."""
    network, call = build()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x = torch.randn(shape)
    before = memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # what the imports took at most is not the step's
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            made = call(network, x)
        made.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    memory = (memory_kib("VmHWM") - before) / 1024
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    return {"seconds": min(times), "mib": memory, "gflop": flops(build, shape) / 1e9, "millions": millions}


def memory_kib(name: str) -> int:
    """Of this process, as Linux says it: resident now (VmRSS), or the most so far (VmHWM)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def equal_width(peer: str, patch: int) -> int:
    """The width, in steps of 8, at which ours has the FLOPs nearest to the peer's."""
    _, build, shape, _ = PEERS[peer]
    asked = flops(build, shape)
    found = {}
    for width in count(16, 8):
        found[width] = flops(partial(ours, width, patch, shape), shape)
        if found[width] >= asked:
            return min(found, key=lambda width: abs(found[width] - asked))


def apart(*arguments: object) -> dict[str, float]:
    """`measure` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main(*mixed: str) -> None:
    print("| network | M | GFLOP | threads | s per step | ours is faster by | MiB | of its memory |")
    print("|---|---|---|---|---|---|---|---|")
    for peer, (title, _, _, patches) in PEERS.items():
        widths = {patch: equal_width(peer, patch) for patch in patches}
        names = {(): title} | {(width, patch): f"ours, width {width}, patch {patch}" for patch, width in widths.items()}
        for threads in (1, 2):
            runs = [{options: apart(*mixed, peer, threads, *options) for options in names} for _ in range(ROUNDS)]
            best = {options: min((run[options] for run in runs), key=lambda run: run["seconds"]) for options in names}
            for options, name in names.items():
                row(name, threads, best[options], best[()] if options else None)


def row(name: str, threads: int, figures: dict[str, float], theirs: dict[str, float] | None = None) -> None:
    """Print one row of the table."""
    faster, memory = "", ""
    if theirs:
        faster = f"**{theirs['seconds'] / figures['seconds']:.2f}x**"
        memory = f"{figures['mib'] / theirs['mib']:.2f}"
    print(
        f"| {name} | {figures['millions']:.2f} | {figures['gflop']:.1f} | {threads} "
        f"| {figures['seconds']:.3f} | {faster} | {figures['mib']:.0f} | {memory} |",
        flush=True,
    )


if __name__ == "__main__":
    mixed = sys.argv[1:2] == ["bf16"]
    if arguments := sys.argv[1 + mixed :]:
        peer, threads, *options = arguments
        torch.set_num_threads(int(threads))
        torch.manual_seed(0)
        _, theirs, shape, _ = PEERS[peer]
        print(json.dumps(measure(partial(ours, *map(int, options), shape) if options else theirs, shape, mixed)))
    else:
        main(*["bf16"] * mixed)
