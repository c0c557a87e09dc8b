"""Features of any film that need no trained weights, for a distance between two sets of films.

Shapes: ``b`` films, ``t`` frames, ``h`` by ``w`` pixels, ``f`` features.
"""

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


def motion_statistics(media: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "b f"]:
    """18 numbers about change in time, most of them decimal logarithms of levels, full scale being 1.

    Mean change of a pixel over one, two and all frames (the last is the dynamic degree), its share of each color
    channel, its deviation from frame to frame; second and third differences in time; shares of pixels that change by
    0.02, 0.1 and 0.3; flicker, which is the deviation over time of the mean (and of the contrast) of a frame from a
    linear trend, relative to its level; gradient and Laplacian of the frames, with their deviation over time.

    Raises:
        ValueError: with less than 4 frames.
    """
    if (t := media.shape[2]) < 4:
        raise ValueError(f"motion_statistics needs at least 4 frames, got {t}.")
    color = media.float() / 255
    light = color.mean(1)
    first, channels = light.diff(dim=1).abs(), color.diff(dim=2).abs().mean((2, 3, 4))
    gradient = (light.diff(dim=3).abs().mean((2, 3)) + light.diff(dim=2).abs().mean((2, 3))) / 2
    roughness = (light[..., 1:-1, 1:-1] - F.avg_pool2d(light, 3, 1)).abs().mean((2, 3))
    levels = [first.mean((1, 2, 3)), (light[:, 2:] - light[:, :-2]).abs().mean((1, 2, 3))]
    levels += [(light[:, -1] - light[:, 0]).abs().mean((1, 2)), first.mean((2, 3)).std(1)]
    levels += [light.diff(n, dim=1).abs().mean((1, 2, 3)) for n in (2, 3)]
    levels += [flicker(light.mean((2, 3))), flicker(light.std((2, 3)))]
    levels += [gradient.mean(1), gradient.std(1), roughness.mean(1), roughness.std(1)]
    shares = [(first > threshold).float().mean((1, 2, 3)) for threshold in (0.02, 0.1, 0.3)]
    shares += list((channels / channels.sum(1, keepdim=True).clamp(min=1e-4)).T)
    return torch.cat([(torch.stack(levels, 1) + 1e-4).log10(), torch.stack(shares, 1)], 1)


def flicker(level: Float[Tensor, "b t"]) -> Float[Tensor, "b"]:
    """Root mean square deviation from a linear trend over time, relative to the mean."""
    time = torch.linspace(-1, 1, level.shape[1], device=level.device)
    mean = level.mean(1, keepdim=True)
    slope = (level * time).sum(1, keepdim=True) / time.square().sum()
    return (level - mean - slope * time).square().mean(1).sqrt() / mean[:, 0].clamp(min=1e-3)


def untrained_conv3d(media: UInt8[Tensor, "b 3 t h w"]) -> Float[Tensor, "b f"]:
    """Means and deviations of the channels of two layers of random 3-D convolutions, always the same ones; f = 96.

    The kernels of the first layer sum to zero over time, so they see nothing in a film at rest. Otherwise the colors
    of what is shown drown its motion.

    Raises:
        ValueError: with less than 3 frames.
    """
    if (t := media.shape[2]) < 3:
        raise ValueError(f"untrained_conv3d needs at least 3 frames, got {t}.")
    generator = torch.Generator().manual_seed(0)
    motion, texture = (
        torch.randn(n, m, 3, 3, 3, generator=generator) * math.sqrt(2 / (27 * m)) for n, m in ((16, 3), (32, 16))
    )
    motion = motion - motion.mean(2, keepdim=True)
    first = F.conv3d(media.float() / 127.5 - 1, motion.to(media.device), stride=(1, 2, 2), padding=(0, 1, 1)).relu()
    second = F.conv3d(first, texture.to(media.device), stride=(1, 2, 2), padding=1).relu()
    return torch.cat([part for layer in (first, second) for part in (layer.mean((2, 3, 4)), layer.std((2, 3, 4)))], 1)
