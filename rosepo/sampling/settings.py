"""What a sampling actor needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rosepo.config import PairsConfig


@dataclass(frozen=True)
class ActorSettings:
    """What an actor needs to know.

    Attributes:
        pairs, seed: from the configuration.
        catalogue: file of the examples' items.
        policy: folder of the model that answers; its prompts are the groups'.
        reference: folder of the model whose log-probabilities groups carry.
        oracle: folder of the preference oracle.
        out: folder of the part files.
        embeddings: NumPy file of the title embeddings float32 [n_items, d]; None where `semantic` is not used.
        cache: folder of the reference's cache entries; None keeps none.
        device: `cpu` or `cuda`.
        origin: digest of all that the groups are made from, `origin_of`.
        candidates: whether the examples' candidates are read.
    """

    pairs: PairsConfig
    seed: int
    catalogue: Path
    policy: Path
    reference: Path
    oracle: Path
    out: Path
    embeddings: Path | None
    cache: Path | None
    device: str
    origin: str
    negatives: int
    candidates: bool = False
