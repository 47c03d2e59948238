"""Titles that a model was not trained on: whether it can spell them, and whether it knows the tokens that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rosepo.data.catalogue import Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.model.model_folder import load_builder, read_settings


def check_added(folder: str | Path, catalogue: Catalogue) -> int:
    """Refuse a model folder whose model cannot spell what was added to its catalogue; its weights are not loaded.

    Args:
        folder: one that rosepo wrote.
        catalogue: the folder's own items, and the added ones behind them.

    Returns:
        How many added titles have tokens that none of the others has: what these mean, a model from scratch has not
        learned. 0 for a pretrained one.

    Raises:
        UserError: as `load_builder`, with the title or the setting that is in the way.
    """
    builder = load_builder(folder, catalogue)
    return strange_titles(builder, catalogue.added) if read_settings(folder)["base"] is None else 0


def unknown_told(count: int, added: int) -> str:
    """What that means, in a sentence."""
    return (
        f"{count:,} of the {added:,} added titles are spelled with tokens that no title of its training had: it knows "
        "nothing of them. Small pieces are shared by more titles (model.scratch.whole_titles=0, "
        "model.scratch.vocab_size=1024)"
    )


def strange_titles(builder: PromptBuilder, added: int) -> int:
    """How many of the last `added` titles have a token that no title before them has."""
    if not added:
        return 0
    own = len(builder) - added
    known, _ = builder.pieces(np.arange(own))
    tokens, lengths = builder.pieces(np.arange(own, len(builder)))
    strange = ~np.isin(tokens, known)
    return int(np.logical_or.reduceat(strange, np.cumsum(lengths) - lengths).sum())
