"""Completion of half clouds, beside what the class alone would tell.

    python benchmarks/pointcloud_completion.py CHECKPOINT [COUNT]

Of each held-out thing one half of the points is given (left, lower, back, right, upper, front in turn) and the kind is
told. Printed are the median Chamfer distances to the whole thing of the completion, of the class's mean shape (the
training cloud with the least mean distance to 63 others of its class) and of as many points of all of them together.
"""

import sys

import torch
from hydra.utils import instantiate

from mmdiff.checkpoint import load
from mmdiff.generation import batches
from mmdiff_pointcloud.distances import chamfer, chamfer_matrix
from mmdiff_pointcloud.modality import HALVES


def main(checkpoint: str, count: int = 96) -> None:
    model = load(checkpoint)
    data = instantiate(model.config.data)
    things = [data.held_out[i] for i in range(count)]
    points = things[0][0].shape[0]
    examples: dict[str, list[torch.Tensor]] = {}
    for i in range(1000):
        cloud, cond = data.train[i]
        examples.setdefault(cond["kind"], []).append(cloud)
    sets = {kind: torch.stack(clouds[:64]) for kind, clouds in examples.items()}
    typical = {kind: clouds[chamfer_matrix(clouds, clouds).mean(1).argmin()] for kind, clouds in sets.items()}
    pooled = {kind: clouds.flatten(0, 1)[torch.randperm(64 * points)[:points]] for kind, clouds in sets.items()}
    rows = []
    for i, (cloud, cond) in enumerate(things):
        half = list(HALVES)[i % len(HALVES)]
        asked = [{"kind": cond["kind"]}]
        (made,) = batches(model, asked, seed=i, batch_size=1, given=[cloud], known=half, quiet=True)
        x0, known = model.modality.place(cloud, half)
        kept = model.modality.encode(made[0])[:, known[0]]
        torch.testing.assert_close(kept, x0[:, known[0]], rtol=0, atol=1e-5)
        baselines = typical[cond["kind"]], pooled[cond["kind"]]
        rows.append([half, *(1000 * chamfer(other, cloud).item() for other in (made[0], *baselines))])
        print(f"\r{i + 1} of {count}", end="", file=sys.stderr)
    print("\n| half given | completion | mean shape of the class | all of the class | ratio |\n|---|---|---|---|---|")
    for half in (*HALVES, "all"):
        columns = [list(column) for column in zip(*(row[1:] for row in rows if half in (row[0], "all")), strict=True)]
        middle = [torch.tensor(column).median().item() for column in columns]
        ratio = min(middle[1:]) / middle[0]
        print(f"| {half} | " + " | ".join(f"{value:.1f}" for value in middle) + f" | **{ratio:.1f}** |")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
