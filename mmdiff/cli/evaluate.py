"""``mmdiff evaluate``: metrics of new samples, or of a folder of files, against real data."""

import sys

from omegaconf import DictConfig

from mmdiff.cli.app import run, unset_groups


def evaluate(config: DictConfig) -> None:
    """Measure and write ``metrics.json``; samples drawn for it go to ``output/samples``."""
    import torch
    from hydra.utils import instantiate

    from mmdiff.checkpoint import load
    from mmdiff.cli.device import choose
    from mmdiff.data import Folder
    from mmdiff.errors import check_at_least
    from mmdiff.evaluation import first, generated, held_out, measure, write_report
    from mmdiff.generation import CHOICES, generate, make_folder, override, plain

    check_at_least(2, count=config.count)
    torch.manual_seed(config.seed)
    output = make_folder(config.output)
    model = load(config.checkpoint, choose(config.device))
    override(model.config, config)
    modality = model.modality
    real = first(Folder(config.real, modality), config.count) if config.real else held_out(model.config, config.count)
    protocol = {"checkpoint": str(config.checkpoint), "real": config.real or "held out", "real_count": len(real)}
    if config.fake:
        fake = generated(config.fake, modality, config.count)
        protocol |= {"fake": config.fake}
    else:
        names = model.denoiser.conditioner.embedders
        asked = [real[i % len(real)][1] for i in range(config.count)]
        conds = [{name: cond[name] for name in names if name in cond} for cond in asked]
        media = generate(model, conds, output / "samples", seed=config.seed, batch_size=config.batch_size)
        fake = list(zip(torch.cat(media), conds, strict=True))
        protocol |= {"seed": config.seed} | {name: plain(model.config[name]) for name in CHOICES}
    metrics = modality.metrics() | {name: instantiate(m) for name, m in model.config.metrics.items()}
    write_report(measure(metrics, real, fake), protocol | {"fake_count": len(fake)}, output)


if __name__ == "__main__":
    sys.argv[1:] = unset_groups(sys.argv[1:])
    run("evaluate", evaluate)
