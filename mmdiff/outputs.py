"""The folder that samples are written to, by one process or by many, so that nothing whole is lost or made again."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mmdiff.errors import DataError
from mmdiff.modality import Modality
from mmdiff.pictures import describe, save_grid

RECORD, PREVIEW, UNFINISHED = "samples.jsonl", "preview.png", ".unfinished"
PICTURED = 64  # samples in the preview


@runtime_checkable
class Processes(Protocol):
    """This process among all that do a job, for instance a `lightning.Fabric`."""

    @property
    def global_rank(self) -> int:
        """From 0 on."""

    @property
    def world_size(self) -> int:
        """How many there are."""

    def barrier(self) -> None:
        """Wait until all processes are here."""


class Alone:
    """A process that has no others beside it."""

    global_rank, world_size = 0, 1

    def barrier(self) -> None:
        """Wait for nobody."""


class Output:
    """Files of samples with the record of what made each.

    A file appears under its name when it is whole and its line is in the record. While samples are missing, each
    process keeps its lines below ``.unfinished``; `finish` merges them. A sample is done if its file is there and a
    line says what would be said of it now.

    Args:
        folder: an existing one, the same for all processes.
        modality: writes the files.
        entries: the line of each sample in the record, of which ``file`` names the file and ``cond`` the conditions.
    """

    def __init__(self, folder: Path, modality: Modality, entries: Sequence[Mapping[str, Any]]):
        self.folder = folder
        self.modality = modality
        self.entries = entries
        self.lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]

    def forget(self) -> None:
        """Take all samples for missing."""
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
        (self.folder / RECORD).unlink(missing_ok=True)

    def done(self) -> list[bool]:
        """Whether each sample is done, by whatever process."""
        recorded: set[str] = set()
        for record in (self.folder / RECORD, *self.folder.glob(f"{UNFINISHED}/*/{RECORD}")):
            if record.is_file():  # its last line may be torn, and is then none of ours
                recorded.update(record.read_text(encoding="utf-8", errors="replace").split("\n"))
        there = {path.name for path in self.folder.iterdir()}
        return [
            line in recorded and entry["file"] in there for line, entry in zip(self.lines, self.entries, strict=True)
        ]

    @cached_property
    def own(self) -> Path:
        """A folder that no other process writes to, not even one left over from a command that was killed."""
        (self.folder / UNFINISHED).mkdir(exist_ok=True)
        own = Path(tempfile.mkdtemp(dir=self.folder / UNFINISHED))
        (own / "files").mkdir()
        return own

    def write(
        self, index: int, media: Tensor, origin: Path | None = None, found: Mapping[str, Any] | None = None
    ) -> None:
        """Write the media of one sample, in the units of the file ``origin`` if there is one, and its line.

        ``found`` is what the line shall also say, known only now; a sample that has it is done for this process alone.
        """
        if found:
            self.lines[index] = json.dumps({**self.entries[index], **found}, ensure_ascii=False)
        path = self.own / "files" / self.entries[index]["file"]
        self.modality.write(self.modality.restore(media, origin) if origin else media, path)
        if index < PICTURED:
            torch.save(self.modality.preview(media), self.own / "picture")
            (self.own / "picture").replace(self.own / f"{index}.pt")
        (self.folder / path.name).unlink(missing_ok=True)  # one of something else is not taken for this one
        with (self.own / RECORD).open("a", encoding="utf-8") as record:
            record.write(self.lines[index] + "\n")
        for part in sorted(path.parent.iterdir(), key=lambda part: part == path):  # what goes with it comes first
            part.replace(self.folder / part.name)

    def finish(self) -> None:
        """Merge what the processes recorded into ``samples.jsonl``, in order, and ``preview.png``.

        Raises:
            DataError: if a sample is missing.
        """
        missing = [entry["file"] for entry, done in zip(self.entries, self.done(), strict=True) if not done]
        if missing:
            reason = f"lacks {missing[0]}, one of {len(missing)}; output must be one folder for all processes"
            raise DataError(self.folder, reason)
        unfinished = self.folder / UNFINISHED
        saved = {path.stem: torch.load(path, weights_only=True) for path in unfinished.glob("*/*.pt")}
        if saved or not (self.folder / PREVIEW).is_file():
            shown = self.entries[:PICTURED]
            pictures = [saved[str(i)] if str(i) in saved else self._picture(entry) for i, entry in enumerate(shown)]
            save_grid(pictures, [describe(entry["cond"]) for entry in shown], self.folder / PREVIEW)
        unfinished.mkdir(exist_ok=True)
        (unfinished / RECORD).write_text("".join(line + "\n" for line in self.lines), encoding="utf-8")
        (unfinished / RECORD).replace(self.folder / RECORD)
        shutil.rmtree(unfinished, ignore_errors=True)

    def _picture(self, entry: Mapping[str, Any]) -> Tensor:
        """That of a sample from an earlier command, as far as its file is read."""
        return self.modality.preview(self.modality.read(self.folder / entry["file"]))
