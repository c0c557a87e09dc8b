"""The demonstration behind ``make demo``: train on notes, play some to order, measure how well they obey.

Three commands that anybody could type, and a report of what they made.
"""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path("demo")
PITCHES = (60, 65, 70, 75, 62, 67, 72, 77, 64, 69, 74, 79, 66, 71, 76, 84)
TIMBRES = ("flute", "reed", "organ", "pluck")


def main() -> None:
    """Train, sample 16 notes, evaluate 64, write ``report.json`` and say where to listen."""
    checkpoint = FOLDER / "run" / "checkpoints" / "last.ckpt"
    start = time.monotonic()
    mmdiff("train", "experiment=audio/demo", f"hydra.run.dir={FOLDER / 'run'}")
    trained = time.monotonic() - start
    timbres = [timbre for timbre in TIMBRES for _ in range(4)]
    asked = f"cond={{pitch: [{', '.join(map(str, PITCHES))}], timbre: [{', '.join(timbres)}]}}"
    mmdiff("sample", f"checkpoint={checkpoint}", "count=16", asked, f"output={FOLDER / 'notes'}")
    mmdiff("evaluate", f"checkpoint={checkpoint}", "count=64", f"output={FOLDER / 'evaluation'}")
    measured = json.loads((FOLDER / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    report = {"training_seconds": round(trained), "machine": machine(), **measured}
    (FOLDER / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    metrics = measured["metrics"]
    print(
        f"\nTrained for {trained / 60:.1f} minutes. Of 64 notes {metrics['notes.pitch']:.0%} have the asked pitch "
        f"(within 50 cents) and {metrics['notes.timbre']:.0%} the asked timbre.\n"
        f"Listen:  {FOLDER}/notes/*.wav   (what was asked: {FOLDER}/notes/samples.jsonl)\n"
        f"Look:    {FOLDER}/notes/preview.png\n"
        f"Report:  {FOLDER}/report.json"
    )


def mmdiff(*arguments: str) -> None:
    """Run a command, shown as one would type it; its failure ends the demonstration."""
    print("$ mmdiff " + " ".join(repr(a) if " " in a else a for a in arguments), flush=True)
    subprocess.run([sys.executable, "-m", "mmdiff", *arguments], check=True)


def machine() -> str:
    """Processor and number of cores, for the report."""
    import torch

    return f"{platform.machine()}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
