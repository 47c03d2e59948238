"""Where the outputs of a run live."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


def of_round(name: str, round: int) -> str:
    """The name of a stage or a folder in a round: itself in the first, `name-2`, `name-3`, … later."""
    return name if round == 1 else f"{name}-{round}"


@dataclass(frozen=True)
class RunPaths:
    """The folders of one run, as a stage of one round sees them.

    Attributes:
        root: the run's folder.
        round: of pairs and alignment, from 1 on.
        moved: whether the reference of later rounds is the policy that they start from, instead of the SFT model.
    """

    root: Path
    round: int = 1
    moved: bool = False

    @property
    def examples(self) -> Path:
        return self.root / "examples"

    @property
    def sft(self) -> Path:
        return self.root / "sft"

    @property
    def oracle(self) -> Path:
        return self.root / "oracle"

    @property
    def policy(self) -> Path:
        """The model that samples in this round and that its alignment starts from."""
        return self.sft if self.round == 1 else self.root / of_round("aligned", self.round - 1)

    @property
    def reference(self) -> Path:
        """The model that this round's policy is compared with."""
        return self.policy if self.moved else self.sft

    @property
    def groups(self) -> Path:
        return self.root / of_round("groups", self.round)

    @property
    def aligned(self) -> Path:
        return self.root / of_round("aligned", self.round)

    @property
    def rounds(self) -> tuple[RunPaths, ...]:
        """The same run as every round up to this one sees it."""
        return tuple(replace(self, round=number) for number in range(1, self.round + 1))

    @property
    def sweep(self) -> Path:
        return self.root / "sweep"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def metrics(self) -> Path:
        """What the last evaluation measured, as it stands at the top of the folder."""
        return self.root / "metrics.json"

    @property
    def report(self) -> Path:
        """The page that is drawn of it."""
        return self.root / "report.html"
