"""Trains models on captions and measures how well they do what they are told in words.

`python benchmarks/prompts.py audio/notes_text` trains; with the path of a checkpoint behind it it does not. Prints the
metrics on wordings that training reads, on held-out wordings and on held-out combinations of factors; for notes
also the share of each timbre among notes whose timbre is left open, without and with a negative prompt that names it.
"""

import json
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

from mmdiff_audio.captions import NAMES
from mmdiff_audio.media import read
from mmdiff_audio.metrics import NoteAccuracy
from mmdiff_audio.notes import TIMBRES, Notes

COUNT = 64
OPEN = 256  # notes whose timbre is left open: a share of a fifth is to be told from half of it
SPLITS = ("train", "wordings", "combinations")
SCALES = (1.0, 2.0, 3.0)
NEGATIVE_SCALES = (3.0, 5.0)


def mmdiff(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "mmdiff", *arguments], check=True, stdout=subprocess.DEVNULL)


def measure(checkpoint: Path, split: str, scale: float, folder: Path) -> dict[str, float]:
    told = [f"data.dataset.split={split}", "data.dataset.complete=true", f"guidance.scale={scale}"]
    mmdiff("evaluate", f"checkpoint={checkpoint}", f"count={COUNT}", *told, f"output={folder}")
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]


def judge_of_notes() -> NoteAccuracy:
    """The judge of the notes, which has heard real ones."""
    judge = NoteAccuracy()
    for wave, cond in Notes(size=256, seed=1):
        judge.update(wave[None], real=True, cond={"timbre": [cond["timbre"]]})
    return judge


def shares(judge: NoteAccuracy, checkpoint: Path, folder: Path, *options: str) -> dict[str, float]:
    """How many of the notes of which the pitch alone is asked have each timbre."""
    folder.mkdir()
    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"a note, MIDI {60 + i % 25}\n" for i in range(OPEN)), encoding="utf-8")
    mmdiff("sample", f"checkpoint={checkpoint}", f"prompt={prompts}", *options, f"output={folder}")
    waves = [read(path, judge.rate, 1)[None] for path in sorted(folder.glob("*.wav"))]
    found = {}
    for timbre in TIMBRES:
        asked = deepcopy(judge)
        for wave in waves:
            asked.update(wave, real=False, cond={"timbre": [timbre]})
        found[timbre] = asked.compute()["timbre"].item()
    return found


def main() -> None:
    experiment = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(sys.argv[2]) if len(sys.argv) > 2 else folder / "run" / "checkpoints" / "last.ckpt"
        if len(sys.argv) == 2:
            mmdiff("train", f"experiment={experiment}", f"hydra.run.dir={folder / 'run'}")
        for scale in SCALES:
            for split in SPLITS:
                metrics = measure(checkpoint, split, scale, folder / "evaluation")
                shown = ", ".join(f"{name} {value:.3g}" for name, value in metrics.items() if value is not None)
                print(f"| {experiment} | {scale:g} | {split} | {shown} |", flush=True)
        if experiment == "audio/notes_text":
            judge = judge_of_notes()
            for scale in NEGATIVE_SCALES:
                options = (f"guidance.scale={scale:g}",)
                without = shares(judge, checkpoint, folder / f"open{scale:g}", *options)
                for timbre, (name, *_) in NAMES.items():
                    against = shares(judge, checkpoint, folder / f"{timbre}{scale:g}", *options, f"negative={name}")
                    print(
                        f"| {scale:g} | negative {name} | {without[timbre]:.3g} | {against[timbre]:.3g} |", flush=True
                    )


if __name__ == "__main__":
    main()
