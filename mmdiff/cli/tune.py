"""``mmdiff tune``: a solver with few steps, fitted to a model."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def tune(config: DictConfig) -> None:
    """Fit on some trajectories, measure on others, write the coefficients."""
    from functools import partial
    from pathlib import Path

    from mmdiff.checkpoint import build_sampler, load, to_dict
    from mmdiff.cli.device import choose
    from mmdiff.errors import check_at_least
    from mmdiff.generation import make_folder, override, plain, spread
    from mmdiff.solvers.tuned import write
    from mmdiff.tuning import best_untuned, draw, errors, fit

    numbers = {name: config[name] for name in ("steps", "count", "reference", "iterations", "batch_size")}
    check_at_least(1, **numbers)
    check_at_least(0, seed=config.seed)
    make_folder(Path(config.output).parent)
    model = override(load(config.checkpoint, choose(config.device)), config)
    sampler = build_sampler(model.config)
    conds = spread(config.cond or {}, 2 * config.count)
    follow = partial(draw, sampler, model.denoiser, model.modality.shape, batch_size=config.batch_size)
    training = follow(conds[: config.count], seed=config.seed, steps=config.reference)
    held_out = follow(conds[config.count :], seed=config.seed + config.count, steps=config.reference)
    name, untuned = best_untuned(sampler.schedule, config.steps, training)
    tuned = fit(untuned, training, config.iterations)
    measured = {
        label: {"training": errors(c, training).median().item(), "held_out": errors(c, held_out).median().item()}
        for label, c in ((name, untuned), ("tuned", tuned))
    }
    choices = {group: plain(model.config[group]) for group in ("schedule", "guidance")}
    asked = {"cond": to_dict(config.cond) if config.cond else None, "seed": config.seed, **numbers}
    trained = {"checkpoint": str(config.checkpoint), "run": model.config.get("output")}
    write(tuned, config.output, **trained, **choices, **asked, median_error=measured)
    print(f"{'median error':36} {'training':>10} {'held out':>10}")
    for label, error in measured.items():
        print(f"{label:36} {error['training']:10.4g} {error['held_out']:10.4g}")
    print(f"wrote {config.output}: steps={config.steps} solver=tuned solver.file={config.output}")


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("tune", sys.argv[1:])
    run("tune", tune)
