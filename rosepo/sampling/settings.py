"""What a sampling actor needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rosepo.config import PairsConfig
from rosepo.run.paths import RunPaths

if TYPE_CHECKING:
    from rosepo.sampling.reference_cache import ReferenceCache


@dataclass(frozen=True)
class ActorSettings:
    """What an actor needs to know.

    Attributes:
        pairs: the settings of the stage.
        seed: of the run in its round.
        candidates: whether examples are read with the candidates that are listed for them.
        paths: examples, the policy that answers and whose prompts are the groups', the reference whose
            log-probabilities groups carry, and the oracle.
        out: folder of the part files.
        embeddings: NumPy file of the title embeddings float32 [n_items, d]; None where `semantic` is not used.
        cache: of the reference's log-probabilities; None keeps none.
        device: `cpu` or `cuda`.
        precision: of the language models, float32 or bfloat16.
        origin: digest of all that the groups are made from, `Sampling.origin`.
        negatives: K, rejected titles a group.
    """

    pairs: PairsConfig
    seed: int
    candidates: bool
    paths: RunPaths
    out: Path
    embeddings: Path | None
    cache: ReferenceCache | None
    device: str
    precision: str
    origin: str
    negatives: int
