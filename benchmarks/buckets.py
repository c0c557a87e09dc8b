"""Training on examples of different lengths: how much is padding, and examples per second, with and without buckets.

    python benchmarks/buckets.py

Sequences of 8 channels whose lengths are uniform from an eighth of 256 to all of it, in batches of the room of 16 whole
ones: forward, backward and AdamW on three quarters of 1024 examples, one thread, after 4 batches to warm up.
"""

import time
from collections.abc import Iterator

import torch
from torch.utils.data import Dataset

from mmdiff.conditioning import Conditioner
from mmdiff.data import DataModule
from mmdiff.denoiser import Denoiser
from mmdiff.modality import Modality
from mmdiff.nn.transformer import Transformer
from mmdiff.nn.unet import UNet
from mmdiff.scaling import EDM
from mmdiff.types import Batch

CHANNELS, LENGTH, BATCH, COUNT, PATCH = 8, 256, 16, 1024, 4


class Sequences(Modality):
    """Up to 256 moments of 8 channels."""

    shape, suffixes, suffix, ragged = (CHANNELS, LENGTH), (".pt",), ".pt", -1

    def read(self, path, generator=None):
        return torch.load(path, weights_only=True)

    def write(self, media, path):
        torch.save(media, path)

    def encode(self, media):
        return torch.nn.functional.pad(media, (0, LENGTH - media.shape[-1]))

    def decode(self, x):
        return x

    def mask(self, media):
        short = media.shape[-1] < LENGTH
        return (torch.arange(LENGTH) < media.shape[-1]).expand(self.shape) if short else None

    def preview(self, media):
        return (media.clamp(0, 1) * 255).byte().expand(3, -1, -1)


class Noise(Dataset):
    """Of random length."""

    def __len__(self) -> int:
        return COUNT + 1

    def __getitem__(self, index: int):
        generator = torch.Generator().manual_seed(index)
        length = int(torch.randint(LENGTH // 8, LENGTH + 1, (), generator=generator))
        return torch.randn(CHANNELS, length, generator=generator), {}


def batches(bucket: int) -> Iterator[Batch]:
    """Of one pass and a little more."""
    torch.manual_seed(0)
    data = DataModule(
        Noise(), Sequences(), batch_size=BATCH, held_out=1, cache=True, bucket=bucket, multiple=PATCH if bucket else 1
    )
    return iter(data.train_dataloader())


def speed(network: torch.nn.Module, bucket: int) -> tuple[float, float]:
    """Examples per second, and the share of what is computed that is padding."""
    denoiser = Denoiser(network, EDM(), Conditioner(16, {}))
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-4)
    start, seen, data, places = 0.0, 0, 0, 0
    for number, (x, _, mask) in enumerate(batches(bucket)):
        if number == 4:
            start, seen, data, places = time.perf_counter(), 0, 0, 0
        context = denoiser.conditioner({}, len(x))
        loss = denoiser.loss(x, torch.rand(len(x)) + 0.1, torch.randn_like(x), context, mask=mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen, data, places = seen + len(x), data + int(x.numel() if mask is None else mask.sum()), places + x.numel()
        if seen >= COUNT * 3 // 4:
            break
    return seen / (time.perf_counter() - start), 1 - data / places


def main() -> None:
    torch.set_num_threads(1)
    networks = {
        "UNet": lambda: UNet((CHANNELS, LENGTH), 16, width=48, multipliers=(1, 2, 2), attention=(2,)),
        "Transformer": lambda: Transformer(
            (CHANNELS, LENGTH), 16, width=128, depth=4, patch=[PATCH], attention=[[0]], head=32
        ),
    }
    print("| network | order | padding | examples a second | ratio |\n|---|---|---|---|---|")
    for name, make in networks.items():
        plain, empty = speed(make(), 0)
        print(f"| {name} | shuffled | {empty:.0%} | {plain:.1f} | 1 |")
        for bucket in (4, 16):
            fast, empty = speed(make(), bucket)
            print(f"| | `data.bucket={bucket}` | {empty:.0%} | {fast:.1f} | **{fast / plain:.2f}** |", flush=True)


if __name__ == "__main__":
    main()
