"""Which titles of a prompt's history `sft` learned from that prompt's own beginning, and where they stand."""

from __future__ import annotations

import numpy as np

from rosepo.data.prompts import PromptBuilder


def title_spans(builder: PromptBuilder, history: np.ndarray, dropped: int, earlier: int) -> np.ndarray:
    """Begin and end in the prompt of a history's titles that are targets of examples with the same first item.

    Args:
        builder: of the prompt.
        history: item indexes, oldest first.
        dropped: items at its old end that the prompt leaves out.
        earlier: how many of its last items are targets of examples whose histories begin where it does.

    Returns:
        Flat pairs, int32 [2 * n], oldest first.
    """
    known = min(earlier, len(history) - dropped - 1)
    if dropped:
        # An earlier prompt had room for what this one leaves out, so its titles are learned behind more history.
        found = 0
        while found < known and builder.prompt(history[: len(history) - found - 1])[1] == dropped:
            found += 1
        known = found
    spans = builder.spans(history[dropped:])
    flat: np.ndarray = spans[len(spans) - known :].astype(np.int32).ravel()
    return flat
