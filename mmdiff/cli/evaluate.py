"""``mmdiff evaluate``: metrics of new samples, or of a folder of files, against real data."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig

from mmdiff.cli.app import from_checkpoint, run


def evaluate(config: DictConfig) -> None:
    """Measure and write ``metrics.json``; samples drawn for it go to ``output/samples``."""
    import torch
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from mmdiff.checkpoint import load, to_dict
    from mmdiff.cli.device import choose
    from mmdiff.data import open_folder
    from mmdiff.errors import check_at_least
    from mmdiff.evaluation import first, generated, held_out, measure, write_report
    from mmdiff.generation import CHOICES, generate, make_folder, override, plain

    check_at_least(2, count=config.count)
    torch.manual_seed(config.seed)
    output = make_folder(config.output)
    model = override(load(config.checkpoint, choose(config.device)), config)
    modality = model.modality
    model.config.data = OmegaConf.merge(model.config.data, config.data or {})
    real = (
        first(open_folder(config.real, modality), config.count) if config.real else held_out(model.config, config.count)
    )
    protocol = {"checkpoint": str(config.checkpoint), "real": config.real or "held out", "real_count": len(real)}
    protocol |= {"data": to_dict(config.data)} if config.data else {}
    if config.fake:
        fake = generated(config.fake, modality, config.count)
        protocol |= {"fake": config.fake}
    else:
        asked = [real[i % len(real)] for i in range(config.count)]
        known = list(model.denoiser.conditioner.embedders)
        names = known if config.ask is None else config.ask
        check_known(names, known)
        media = generate(
            model,
            [{name: cond[name] for name in names if name in cond} for _, cond in asked],
            output / "samples",
            seed=config.seed,
            batch_size=config.batch_size,
            given=[] if config.known is None else [media for media, _ in asked],
            known=config.known,
        )
        fake = [(made, cond) for made, (_, cond) in zip(torch.cat(media), asked, strict=True)]
        protocol |= {"seed": config.seed, "ask": list(names), "known": config.known}
        protocol |= {name: plain(model.config[name]) for name in CHOICES}
    metrics = modality.metrics() | {name: instantiate(m) for name, m in model.config.metrics.items()}
    write_report(measure(metrics, real, fake), protocol | {"fake_count": len(fake)}, output)


def check_known(asked: Sequence[str], known: Sequence[str]) -> None:
    """Check the names of conditions.

    Raises:
        ValueError: for one that the model does not know.
    """
    surplus = set(asked) - set(known)
    if surplus:
        allowed = ", ".join(known) or "none"
        raise ValueError(f"ask names {min(surplus)}, which is not a condition of this model; it has {allowed}.")


if __name__ == "__main__":
    sys.argv[1:] = from_checkpoint("evaluate", sys.argv[1:])
    run("evaluate", evaluate)
