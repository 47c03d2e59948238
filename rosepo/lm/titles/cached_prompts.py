"""The language model under a beam search: the prompts once, then only the new token of every beam.

Two ways with one face. `SharedPrompts` keeps one row of keys and values an example: all its beams append to it, and a
mask of ancestors says which entries each of them may see, so nothing is copied or reordered when beams part or die.
`PlainRows` recomputes one row a beam through the model's own forward, for models that take no mask of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from rosepo.lm.rows.base_model import OutputLayer, base_causal_lm, float32_logits
from rosepo.lm.rows.logps import attention_mask

MAX_LOGITS = 2**26
"""Logits (states × vocabulary) held at once: 256 MiB in float32."""
CPU_LOGITS = 2**20
"""The same on a CPU: what its cache holds."""
_AFTER_ATTENTION = frozenset({"self_attn.o_proj", "attn.c_proj", "attention.dense", "mlp"})
"""Parts of a layer behind its keys and values, as the families that can share prompts name them."""


class SharedPrompts:
    """Beams over one key-value row an example.

    Args:
        model: a causal LM for which `sharing_obstacle` is None.
        prompts: one int array of token ids an example, none empty.
    """

    def __init__(self, model: nn.Module, prompts: Sequence[np.ndarray]) -> None:
        causal_lm = base_causal_lm(model)
        self._causal_lm = causal_lm
        self._output = OutputLayer(causal_lm, in_float32=True)
        self._device = next(causal_lm.parameters()).device
        self._lengths = np.array([len(prompt) - 1 for prompt in prompts])
        self._width = int(self._lengths.max())
        self._rows = np.arange(len(prompts))  # the example of each row of the cache
        self._ancestors = np.zeros((len(prompts), 0), dtype=bool)  # [beams, entries behind the cached prompt]
        self._depth = 0
        self._cache = cached_prompts(causal_lm, [prompt[:-1] for prompt in prompts])
        # A prompt's last token, whose state predicts the first of every title, is the beam that all others come from.
        self.advance(self._rows, self._rows, np.array([prompt[-1] for prompt in prompts]))

    def logps(self, beam: np.ndarray, token: np.ndarray) -> np.ndarray:
        """log π(token | beam's tokens) over the full vocabulary, float32 [e]. `beam` (ascending), `token`: int [e]."""
        return _gather(self._output, self._states, beam, token)

    def advance(self, row: np.ndarray, parent: np.ndarray, token: np.ndarray) -> None:
        """Append one token to each surviving beam.

        Args:
            row: int64 [m], ascending: the example of each new beam.
            parent: int64 [m]: the present beam that it continues.
            token: int [m].
        """
        self._drop_finished(np.unique(row))
        at = np.searchsorted(self._rows, row)
        column = np.arange(len(row)) - np.searchsorted(row, row)
        rows, width, entries = len(self._rows), int(column.max()) + 1, self._ancestors.shape[1]
        ancestors = np.zeros((len(row), entries + width), dtype=bool)
        ancestors[:, :entries] = self._ancestors[parent]
        ancestors[np.arange(len(row)), entries + column] = True

        ids, positions = np.zeros((rows, width), dtype=np.int64), np.zeros((rows, width), dtype=np.int64)
        ids[at, column] = token
        positions[at, column] = self._lengths[row] + self._depth
        seen = np.zeros((rows, width, self._width + entries + width), dtype=bool)
        seen[:, :, : self._width] = np.arange(self._width) < self._lengths[self._rows][:, None, None]
        seen[at, column, self._width :] = ancestors
        output = self._causal_lm.get_decoder()(
            input_ids=self._put(ids),
            attention_mask=attention_mask(self._put(seen[:, None]), self._causal_lm),
            position_ids=self._put(positions),
            past_key_values=self._cache,
            use_cache=True,
        )
        hidden: torch.Tensor = output.last_hidden_state
        self._states = hidden[self._put(at), self._put(column)]
        self._ancestors = ancestors
        self._depth += 1

    def _drop_finished(self, alive: np.ndarray) -> None:
        """Shrink the cache to the examples still searched once a quarter of it is idle."""
        if len(alive) <= 0.75 * len(self._rows):
            self._cache.batch_select_indices(self._put(np.searchsorted(self._rows, alive)))
            self._rows = alive

    def _put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


class PlainRows:
    """The same with one right-padded row a beam, recomputed at every step: slow, and right for any causal LM."""

    def __init__(self, model: nn.Module, prompts: Sequence[np.ndarray]) -> None:
        self._model: Any = model
        self._device = next(model.parameters()).device
        self._sequences = [np.asarray(prompt, dtype=np.int64) for prompt in prompts]

    def logps(self, beam: np.ndarray, token: np.ndarray) -> np.ndarray:
        """See `SharedPrompts.logps`."""
        out = np.empty(len(beam), dtype=np.float32)
        vocabulary = base_causal_lm(self._model).config.get_text_config().vocab_size
        size = max(1, MAX_LOGITS // (vocabulary * max(len(sequence) for sequence in self._sequences)))
        for low in range(0, len(self._sequences), size):
            states = self._last_logits(self._sequences[low : low + size])
            first, last = np.searchsorted(beam, [low, low + size])
            out[first:last] = _gather(torch.Tensor.float, states, beam[first:last] - low, token[first:last])
        return out

    def advance(self, row: np.ndarray, parent: np.ndarray, token: np.ndarray) -> None:
        """See `SharedPrompts.advance`."""
        self._sequences = [np.append(self._sequences[beam], last) for beam, last in zip(parent, token, strict=True)]

    def _last_logits(self, sequences: Sequence[np.ndarray]) -> torch.Tensor:
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        ids = torch.zeros((len(sequences), int(lengths.max())), dtype=torch.int64)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = torch.from_numpy(sequence)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        with float32_logits(base_causal_lm(self._model)):
            output = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device), use_cache=False)
        logits: torch.Tensor = output.logits
        # Learned tokens that an adapter puts before the prompt have logits too.
        last = logits.shape[1] - ids.shape[1] + lengths.to(self._device) - 1
        return logits[torch.arange(len(sequences)), last]


def cached_prompts(causal_lm: Any, prompts: Sequence[np.ndarray]) -> DynamicCache:
    """Keys and values of sequences of token ids, right-padded to the longest, for inference.

    Attention is plain causal, which takes the fast kernels. What stands behind a shorter sequence means nothing: the
    steps that follow must mask it. The cache is empty where all sequences are.

    Args:
        causal_lm: a causal LM for which `sharing_obstacle` is None.
        prompts: int arrays, at least one.
    """
    # No layer types: sliding layers would drop entries that later masks address.
    cache = DynamicCache()
    ids = np.zeros((len(prompts), max(len(prompt) for prompt in prompts)), dtype=np.int64)
    if not ids.size:
        return cache
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    device = next(causal_lm.parameters()).device
    positions = torch.arange(ids.shape[1], device=device).expand(ids.shape)
    body = causal_lm.get_decoder()
    with _last_layer_for_its_keys(body):
        body(input_ids=torch.from_numpy(ids).to(device), position_ids=positions, past_key_values=cache, use_cache=True)
    return cache


@contextmanager
def _last_layer_for_its_keys(body: Any) -> Iterator[None]:
    """Meanwhile the last layer makes keys and values alone: what it would give out goes nowhere.

    Its largest parts run on the first token only, whose result is added to all of them: of eight layers' work nearly a
    tenth is saved.
    """
    layers = getattr(body, "layers", None) or body.h
    idle = [module for name, module in layers[-1].named_modules() if name in _AFTER_ATTENTION]
    hooks = [module.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :1],)) for module in idle]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gather(logits_of: Any, states: torch.Tensor, beam: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Log-softmax entries (beam, token) of float32 logits, computed for a bounded number of states at a time."""
    out = np.empty(len(beam), dtype=np.float32)
    limit = CPU_LOGITS if states.device.type == "cpu" else MAX_LOGITS
    low, size = 0, 16  # the first chunk tells how wide the vocabulary is
    while low < len(states):
        logits = logits_of(states[low : low + size])
        first, last = np.searchsorted(beam, [low, low + size])
        inside = torch.from_numpy(np.stack([beam[first:last] - low, token[first:last]])).to(logits.device)
        out[first:last] = logits.log_softmax(dim=-1)[inside[0], inside[1]].cpu().numpy()
        low, size = low + size, max(16, limit // logits.shape[1])
    return out
