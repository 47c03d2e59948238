"""How many tokens a model takes at once: as many as its device's memory has room for, and fewer where it had not."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from rosepo.lm.rows.base_model import base_causal_lm
from rosepo.lm.rows.partitioned import most_of_ranks, partitioned
from rosepo.utils.console import echo
from rosepo.utils.errors import StageError, said

CPU_TOKENS = 2**11
"""Few on a CPU, where padding costs more than small batches."""
MOST_TOKENS = 2**16
"""Enough to keep a large GPU busy."""
LEAST_TOKENS = 2**8
_SHARE = 0.4
"""Of a GPU's free memory for what a batch holds; logits, masks and copies take more."""
Answer = TypeVar("Answer")


@dataclass
class Room:
    """What a batch may hold.

    Attributes:
        tokens: in the model at once, padding included. Fewer, from then on, after memory did not suffice.
        fixed: where all ranks go through the same batches, none may go on with smaller ones alone.
    """

    tokens: int
    fixed: bool = False

    def attempt(self, run: Callable[[], Answer]) -> Answer | None:
        """What `run` gives; None where the GPU's memory did not suffice: there is half the room then, to try again in.

        Raises:
            StageError: nor did it suffice for the smallest batch.
        """
        try:
            return run()
        except torch.OutOfMemoryError as error:
            if self.fixed:
                raise
            told = said(error)
        # Not before the exception is gone, whose frames hold the tensors.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.tokens <= LEAST_TOKENS:
            raise StageError(
                f"the GPU has no room for {self.tokens} tokens beside the model ({told}): use precision=bfloat16 in "
                "the stage's section, fewer beams or a lower model.max_length, or a larger GPU"
            )
        self.tokens = max(LEAST_TOKENS, self.tokens // 2)
        echo(f"  out of memory on the GPU: batches of {self.tokens:,} tokens from here on")
        return None

    def in_batches(
        self, order: np.ndarray, cost: Callable[[int], int], run: Callable[[np.ndarray], Answer]
    ) -> Iterator[tuple[np.ndarray, Answer]]:
        """Places of each batch and what `run` gives for them.

        Args:
            order: int [N], the places, the most expensive one first.
            cost: tokens that a place takes in a batch that begins with it.
            run: of some places.

        Raises:
            StageError: as `attempt`.
        """
        while len(order):
            places = order[: max(1, self.tokens // cost(int(order[0])))]
            found = self.attempt(partial(run, places))
            if found is not None:
                yield places, found
                order = order[len(places) :]


_ROOMS: WeakKeyDictionary[nn.Module, Room] = WeakKeyDictionary()


def room_of(model: nn.Module) -> Room:
    """The room of a causal LM (or a PEFT model on one) on its device, which all who ask for it share.

    Of weights in parts every rank must ask, and has the room of the one that has least.
    """
    causal_lm = base_causal_lm(model)
    if causal_lm not in _ROOMS:
        device, together = next(causal_lm.parameters()).device, partitioned(causal_lm)
        tokens = CPU_TOKENS if device.type != "cuda" else fitting(torch.cuda.mem_get_info(device)[0], causal_lm)
        _ROOMS[causal_lm] = Room(-most_of_ranks(-tokens) if together else tokens, together)
    return _ROOMS[causal_lm]


def fitting(free: int, causal_lm: Any) -> int:
    """Tokens that `free` bytes hold, between LEAST_TOKENS and MOST_TOKENS."""
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, _SHARE * free // token_bytes(causal_lm))))


def token_bytes(causal_lm: Any) -> int:
    """Bytes that a token takes in a pass without gradients: its keys and values in every layer, twice, since a step
    appends to a copy of them, and the widest states of one layer."""
    config = causal_lm.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys_values = 2 * (getattr(config, "num_key_value_heads", None) or heads) * width
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    size = causal_lm.dtype.itemsize
    return int(size * (2 * config.num_hidden_layers * keys_values + 8 * config.hidden_size + 3 * inner))
