"""Checkpoints of a training run, to go on from after a worker or the whole job was lost. Nothing is pickled.

Every rank writes the numbers that it steps on itself, `rank-00000-of-00002.safetensors`, in a thread beside the
training, aside and then renamed; rank 0 adds `checkpoint.json` with what all ranks have in common. A checkpoint is
complete when the JSON and the files of all its ranks are there, so nobody has to wait for anybody. Numbers stand under
their parameter's name and place (`pieces`): any number of workers, and any ZeRO stage, can read those they need.

Free of torch: the processes that feed training look here for the step to begin with.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rosepo.training.checkpoint.pieces import PieceReader, Place, opened, write_pieces
from rosepo.utils.errors import StageError
from rosepo.utils.files import aside_of, write_json

FOLDER = "_checkpoints"
FORMAT = 2
_FACTS = "checkpoint.json"
_STEP = "step-{:09d}"
_RANK = "rank-{:05d}-of-{:05d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        folder: where it stands.
        facts: what all ranks have in common: `step`, `world` (ranks that wrote it), `origin`, and what the training
            loop keeps there; `whole`, whether the optimizer's state is in it, without which nothing goes on from it.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    @property
    def world(self) -> int:
        return int(self.facts["world"])

    @property
    def whole(self) -> bool:
        return bool(self.facts["whole"])

    def path(self, rank: int) -> Path:
        """The file of one of the ranks that wrote it."""
        return self.folder / _RANK.format(rank, self.world)

    def reader(self, rank: int) -> PieceReader:
        """The pieces of all ranks' files, those of `rank`, where there is one of its number, first."""
        others = [self.path(other) for other in range(self.world) if other != rank]
        return PieceReader(([self.path(rank)] if rank < self.world else []) + others, self._remedy)

    def tensors(self, rank: int, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The tensors in a rank's file whose names begin with one of `kinds` and a slash.

        Raises:
            StageError: it cannot be read.
        """
        with opened(self.path(rank), self._remedy) as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names if name.partition("/")[0] in kinds}

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder} and run it again"


def complete_checkpoints(out: Path, origin: str | None = None) -> list[Checkpoint]:
    """The complete checkpoints of a run that writes into `out`, oldest first.

    Args:
        origin: digest of all that the training depends on; checkpoints of another one are passed over. None takes any.
    """
    found = []
    for folder, facts in _all_facts(out):
        checkpoint = Checkpoint(folder, facts)
        written = all(checkpoint.path(rank).exists() for rank in range(checkpoint.world))
        if written and facts["format"] == FORMAT and origin in (None, facts["origin"]):
            found.append(checkpoint)
    return found


def _all_facts(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and facts of every checkpoint that has any, oldest first."""
    for folder in sorted((out / FOLDER).glob("step-*")):
        with contextlib.suppress(OSError, ValueError):
            yield folder, json.loads((folder / _FACTS).read_text(encoding="utf-8"))


def newest_checkpoint(out: Path, origin: str | None = None) -> Checkpoint | None:
    """The one to go on from; None where there is none."""
    whole = (found for found in complete_checkpoints(out, origin) if found.whole)
    return max(whole, key=lambda found: found.step, default=None)


def steps_done(out: Path, origin: str) -> int:
    """Steps of the training that its newest checkpoint holds; 0 where there is none."""
    newest = newest_checkpoint(out, origin)
    return 0 if newest is None else newest.step


def of_another_version(out: Path) -> bool:
    """Whether checkpoints are there that another version of rosepo wrote, which nothing goes on from."""
    return any(facts["format"] != FORMAT for _, facts in _all_facts(out))


def remove_checkpoints(out: Path) -> None:
    """Take away what only a later run would have needed."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


class CheckpointWriter:
    """Writes one rank's share of checkpoints in a thread of its own, one at a time.

    Args:
        out: the folder that the training writes into; all ranks must reach it.
        name: of the training, for messages.
        keep: newest complete checkpoints to go on from that stay.
    """

    def __init__(self, out: Path, name: str, rank: int, world: int, keep: int) -> None:
        self.out, self.name, self.rank, self.world, self.keep = out, name, rank, world, keep
        self._thread: threading.Thread | None = None
        self._read = threading.Event()
        self._read.set()
        self._error: BaseException | None = None

    def write(
        self, step: int, pieces: Mapping[str, np.ndarray], places: Mapping[str, Place], facts: Mapping[str, Any]
    ) -> None:
        """Begin to write the checkpoint of a step; waits for the one before.

        Args:
            pieces: this rank's part, not to be changed before `settle` has been called.
            places: see `write_pieces`.
            facts: JSON-able, the same on every rank; `best_step`, where there is one, names a checkpoint that stays
                beside the newest ones.

        Raises:
            StageError: the one before could not be written.
        """
        self.wait()
        about = {"format": FORMAT, "step": step, "world": self.world, **facts}
        self._read.clear()
        self._thread = threading.Thread(
            target=self._write, args=(step, pieces, places, about), name="rosepo-checkpoint", daemon=True
        )
        self._thread.start()

    def settle(self) -> None:
        """Until what was begun has been read, though it may not be on the disk yet."""
        self._read.wait()

    def wait(self) -> None:
        """Until everything that was begun is written.

        Raises:
            StageError: it could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise StageError(
                f"{self.name}: a checkpoint cannot be written to {self.out / FOLDER} ({reason or error}): make room or "
                f"mend its rights and run the same command again, or set {self.name}.checkpoint_every=0"
            ) from error

    def _write(
        self, step: int, pieces: Mapping[str, np.ndarray], places: Mapping[str, Place], about: dict[str, Any]
    ) -> None:
        folder = self.out / FOLDER / _STEP.format(step)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / _RANK.format(self.rank, self.world)
            aside = aside_of(path)
            write_pieces(aside, pieces, places)
            self._read.set()
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
            if self.rank == 0:
                write_json(folder / _FACTS, about)
                self._tidy(about)
        except OSError as error:
            self._error = error
        finally:
            self._read.set()

    def _tidy(self, about: dict[str, Any]) -> None:
        """Remove what is older than the newest complete checkpoint, but for `keep` to go on from and the best they
        name; of what is newer, other ranks may still be writing their share."""
        complete = complete_checkpoints(self.out)
        if not complete:
            return
        kept = [found for found in complete if found.whole][-self.keep :]
        names = {found.folder.name for found in kept}
        names |= {_STEP.format(best) for best in (about.get("best_step"), *(one.facts.get("best_step") for one in kept))
                  if best is not None}  # fmt: skip
        for folder in (self.out / FOLDER).glob("step-*"):
            if folder.name < complete[-1].folder.name and folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)
