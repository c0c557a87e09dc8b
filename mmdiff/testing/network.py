"""The contract of a network."""

from copy import deepcopy

import torch
from torch import Generator, Tensor, nn

from mmdiff.conditioning import Conditioner
from mmdiff.denoiser import Denoiser
from mmdiff.scaling import EDM, Scaling
from mmdiff.testing.expect import alike, expect
from mmdiff.types import Context

RULES = "mmdiff.denoiser.Denoiser"
STEPS = 500
LR = 2e-3


def check_network(
    network: nn.Module, x0: Tensor, context: Context, *, scaling: Scaling | None = None, factor: float = 10.0
) -> dict[str, float]:
    """Check that a network keeps the contract that `mmdiff.denoiser.Denoiser` states; it stays as it was.

    Args:
        network: the network.
        x0: at least two examples of data in model space, (b, *d).
        context: of as many examples.
        scaling: the prediction type that it is trained with; EDM's by default.
        factor: by which some steps on one batch must lower the loss.

    Returns:
        The factor reached, and after how many steps.

    Raises:
        AssertionError: saying what was expected, what was seen and where the rule is documented.
    """
    expect(len(x0) >= 2, "x0 holds at least two examples", len(x0), "mmdiff.testing.check_network")
    network = deepcopy(network)
    start = deepcopy(network.state_dict())
    _shake(network)
    _check_call(network.eval(), x0, context)
    _check_gradients(network.train(), x0, context)
    network.load_state_dict(start)
    return _check_overfit(Denoiser(network, scaling or EDM(), Conditioner(1)), x0, context, factor)


def _check_call(network: nn.Module, x0: Tensor, context: Context) -> None:
    """Check one call, with parameters at which no branch is zero."""
    noise = torch.linspace(-1, 1, len(x0))
    before = x0.clone()
    with torch.no_grad():
        y = network(x0, noise, context)
        expect(y.shape == x0.shape, f"a network returns the shape of x, {tuple(x0.shape)}", tuple(y.shape), RULES)
        expect(y.dtype == x0.dtype, f"a network returns the type of x, {x0.dtype}", y.dtype, RULES)
        expect(bool(y.isfinite().all()), "a network returns finite numbers", "inf or nan", RULES)
        expect(torch.equal(x0, before), "a network leaves x as it is", "a changed x", RULES)
        expect(
            torch.equal(y, network(x0, noise, context)), "a network in eval mode is deterministic", "two results", RULES
        )
        alone = network(x0[:1], noise[:1], _first(context))
        close = alike(alone, y[:1], atol=1e-3 * y.std().item())
        expect(close, "a network treats an example alone as in a batch", "a difference", RULES)
        expect(not torch.equal(y, network(-x0, noise, context)), "the output depends on x", "no change", RULES)
        expect(not torch.equal(y, network(x0, noise.flip(0), context)), "it depends on noise", "no change", RULES)
        for field in ("vector", "tokens", "dense"):
            part = getattr(context, field)
            if part is not None:
                other = network(x0, noise, context._replace(**{field: part + torch.randn_like(part)}))
                expect(not torch.equal(y, other), f"the output depends on the context's {field}", "no change", RULES)


def _check_gradients(network: nn.Module, x0: Tensor, context: Context) -> None:
    network.zero_grad()
    network(x0, torch.linspace(-1, 1, len(x0)), context).square().mean().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            used = gradient is not None and bool(gradient.isfinite().all())
            seen = "none" if gradient is None else "inf or nan"
            expect(used, f"parameter {name} gets a finite gradient", seen, RULES)


def _check_overfit(denoiser: Denoiser, x0: Tensor, context: Context, factor: float) -> dict[str, float]:
    """Train on one batch at one noise level with one noise."""
    noise = torch.randn(x0.shape, generator=Generator().manual_seed(0))
    optimizer = torch.optim.Adam(denoiser.network.parameters(), lr=LR, betas=(0.9, 0.99))
    first = loss = 0.0
    reached, taken = 0.0, 0
    for step in range(STEPS):
        value = denoiser.loss(x0, 3.0, noise, context).mean()
        loss = value.item()
        first = first or loss
        if first / max(loss, 1e-12) > reached:
            reached, taken = first / max(loss, 1e-12), step
        if reached >= factor:
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    lowers = f"{STEPS} steps on one batch lower the loss {factor:g} times"
    expect(reached >= factor, lowers, f"{reached:.3g} times, from {first:.3g}", "mmdiff.testing.check_network")
    return {"loss lowered": reached, "steps": float(taken)}


def _shake(network: nn.Module) -> None:
    """Move all parameters, so that none that starts at zero hides what is behind it."""
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.05)


def _first(context: Context) -> Context:
    return Context(*(None if part is None else part[:1] for part in context))
