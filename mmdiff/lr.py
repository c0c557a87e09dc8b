"""Learning-rate factors, for `torch.optim.lr_scheduler.LambdaLR`."""

import math


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Linear from 0 over ``warmup`` steps, then half a cosine to 0 at ``total`` steps: Loshchilov & Hutter 2017.

    A function of the step alone, so a run resumed with a larger ``total`` follows the new schedule from there on.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return (1 + math.cos(math.pi * progress)) / 2
