"""Image to video: is the given first frame exact, and does the object keep its kind and color?

    python benchmarks/video_continuation.py CHECKPOINT [COUNT]

The first frames of held-out films are given and nothing is asked; then kind and color are inferred from them. The judge
reads the films that come of them.
"""

import sys

import torch
from hydra.utils import instantiate

from mmdiff.checkpoint import load
from mmdiff.generation import batches
from mmdiff.recognition import recognize
from mmdiff_video.judge import ShapeAccuracy


def main(checkpoint: str, count: int = 64) -> None:
    model = load(checkpoint)
    data = instantiate(model.config.data)
    films = [data.held_out[i] for i in range(count)]
    given = [media for media, _ in films]
    asked = {"kind": [cond["kind"] for _, cond in films], "color": [cond["color"] for _, cond in films]}
    for inferred in ([], ["color", "kind"]):
        conds = recognize(model, inferred, [{}] * count, given, "first")
        made = torch.cat(list(batches(model, conds, seed=0, batch_size=16, given=given, known="first", quiet=True)))
        exact = sum(torch.equal(new[:, :1], old[:, :1]) for new, old in zip(made, given, strict=True)) / count
        judge = ShapeAccuracy()
        judge.update(made, real=False, cond=asked)
        kept = judge.compute()
        print(f"{count} films, inferred: {', '.join(inferred) or 'nothing'}. First frame exact {exact:.1%}", end="")
        print("".join(f", {name} {kept[name].item():.1%}" for name in ("kind", "color", "kind_and_color", "one")))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
