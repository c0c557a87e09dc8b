import pytest
import torch
from torch import nn

from mmdiff.nn.blocks import zero
from mmdiff.nn.unet import UNet
from mmdiff.types import Context
from mmdiff_video.network import TimeMixer, VideoUNet, inflate, over_frames

FEATURES = 6
OPTIONS = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (1,), "patch": 2}
every_length = pytest.mark.parametrize("length", [1, 2, 5])


def randomize(network):
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def build(**options):
    return randomize(
        VideoUNet((3, 5, 8, 12), FEATURES, temporal_attention=(0,), clip_attention=(1,), **OPTIONS | options)
    )


def inputs(length=5, count=2):
    return torch.randn(count, 3, length, 8, 12), torch.randn(count), Context(vector=torch.randn(count, FEATURES))


def mix(mixer, x, length, emb=None):
    return mixer(x, torch.zeros(len(x), FEATURES, 1, 1) if emb is None else emb, length)


@every_length
@pytest.mark.parametrize("patch", [1, 2])
def test_returns_the_shape_it_was_given(length, patch):
    x, noise, context = inputs(length)
    network = build(patch=patch)
    assert network(x, noise, context).shape == x.shape
    assert network(x[..., :7], noise, Context()).shape == x[..., :7].shape


@every_length
def test_an_inflated_image_network_denoises_frame_by_frame(length):
    image = randomize(UNet((3, 8, 12), FEATURES, **OPTIONS))
    network = VideoUNet((3, 5, 8, 12), FEATURES, temporal_attention=(0,), clip_attention=(1,), **OPTIONS).eval()
    inflate(network, image.state_dict())
    x, _, context = inputs(length)
    noise = torch.randn(2, 1, length, 1, 1)
    frames = [image(x[:, :, i], noise[:, 0, i, 0, 0], context) for i in range(length)]
    torch.testing.assert_close(network(x, noise, context), torch.stack(frames, 2), rtol=1e-5, atol=1e-6)


def test_inflating_names_what_does_not_fit():
    network = build()
    with pytest.raises(ValueError, match="other options"):
        inflate(network, UNet((3, 8, 12), FEATURES, **OPTIONS | {"width": 16}).state_dict())
    with pytest.raises(ValueError, match=r"other options: .* is not in both"):
        inflate(network, UNet((3, 8, 12), FEATURES, **OPTIONS | {"attention": ()}).state_dict())


def test_frames_see_each_other_and_clips_do_not():
    network = build()
    x, noise, context = inputs()
    changed = x.clone()
    changed[0, :, 0] += 1
    moved = (network(changed, noise, context) - network(x, noise, context)).abs().amax((1, 3, 4))
    assert (moved[0] > 1e-4).all()
    assert (moved[1] == 0).all()


def test_a_level_of_its_own_for_every_frame():
    network = build()
    x, noise, context = inputs()
    same = noise.reshape(-1, 1, 1, 1, 1)
    expected = network(x, noise, context)
    for levels in (same, same.expand(2, 1, 5, 1, 1), same.expand(2, 1, 5, 8, 12)):
        torch.testing.assert_close(network(x, levels, context), expected, rtol=1e-4, atol=1e-5)
    other = same.expand(2, 1, 5, 1, 1).clone()
    other[:, :, 3] += 1
    moved = (network(x, other, context) - expected).abs().amax((1, 3, 4))
    assert (moved.argmax(1) == 3).all()


@every_length
@pytest.mark.parametrize("attention", [None, "time", "clip"])
def test_mixing_starts_as_the_identity(length, attention):
    x = torch.randn(2 * length, 8, 3, 4)
    for kernel in (1, 3):
        assert torch.equal(mix(TimeMixer(8, FEATURES, kernel, attention), x, length), x)


@pytest.mark.parametrize("attention", ["time", "clip"])
def test_time_attention_knows_the_order_of_frames(attention):
    mixer = TimeMixer(8, FEATURES, 1, attention)
    nn.init.normal_(mixer.attention.out.weight)
    x = torch.randn(4, 8, 3, 4)
    backwards = mix(mixer, x.flip(0), 4).flip(0)
    assert not torch.allclose(backwards, mix(mixer, x, 4), atol=1e-3)


@pytest.mark.parametrize("attention", ["time", "clip"])
def test_where_attention_looks(attention):
    """Along time a place hears itself alone; in the clip it hears every place of every frame."""
    mixer = TimeMixer(8, FEATURES, 1, attention).requires_grad_(False)
    mixer.norm = mixer.attention.norm = nn.Identity()
    nn.init.normal_(mixer.attention.out.weight)
    x = torch.randn(4, 8, 3, 5)
    changed = x.clone()
    changed[0, :, 1, 2] += 1
    moved = (mix(mixer, changed, 4) - mix(mixer, x, 4)).abs().amax(1) > 1e-6
    expected = torch.zeros(4, 3, 5, dtype=torch.bool)
    expected[:, 1, 2] = True
    assert torch.equal(moved, expected if attention == "time" else torch.ones_like(expected))


def test_time_convolution_is_a_sum_over_three_frames():
    """One channel by hand, without normalization."""
    mixer = TimeMixer(1, FEATURES, 1, None)
    mixer.norm = nn.Identity()
    zero(mixer.modulation)
    mixer.conv.weight.data = torch.tensor([1.0, 10.0, 100.0]).reshape(1, 1, 3, 1, 1)
    x = torch.randn(4, 1, 2, 2)
    h = nn.functional.silu(x)
    expected = x + 10 * h
    expected[1:] += h[:-1]
    expected[:-1] += 100 * h[1:]
    torch.testing.assert_close(mix(mixer, x, 4), expected)


def test_time_convolution_carries_to_neighboring_places():
    mixer = TimeMixer(1, FEATURES, 3, None)
    mixer.norm = nn.Identity()
    zero(mixer.modulation)
    mixer.conv.weight.data[0, 0, 0, 1, 0] = 1.0  # from the frame before, one place to the left
    x = torch.zeros(3, 1, 4, 4)
    x[0, 0, 1, 1] = 1
    moved = mix(mixer, x, 3) - x
    assert moved.nonzero().tolist() == [[1, 0, 1, 2]]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_convolution_over_frames_is_that_of_clips(kernel, layout):
    conv = nn.Conv3d(4, 6, (3, kernel, kernel), padding=(1, kernel // 2, kernel // 2))
    clips = torch.randn(2, 4, 5, 7, 3)
    frames = clips.transpose(1, 2).flatten(0, 1).contiguous(memory_format=layout)
    expected = conv(clips).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(over_frames(conv, frames, 5), expected)


def test_what_is_asked_decides_what_a_frame_tells():
    mixer = TimeMixer(8, FEATURES, 1, None)
    nn.init.normal_(mixer.conv.weight)
    x, emb = torch.randn(4, 8, 3, 4), torch.zeros(4, FEATURES, 1, 1)
    other = emb.clone()
    other[1] = 1
    moved = (mix(mixer, x, 4, other) - mix(mixer, x, 4, emb)).abs().amax((1, 2, 3))
    assert (moved[:3] > 1e-3).all()
    assert moved[3] == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_learns(recompute):
    network = build(recompute=recompute).train()
    x, noise, context = inputs()
    network(x, noise, context).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
