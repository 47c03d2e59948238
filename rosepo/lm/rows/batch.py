"""A batch of rows as tensors, and the mask that says who sees whom in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from rosepo.lm.rows.collate import PAD, collate_numpy
from rosepo.lm.rows.rows import Row


@dataclass(frozen=True, slots=True)
class Batch:
    """B lines of L tokens, each holding one row or several, with P positions at which T tokens of C completions are
    predicted. All int64 but `weights`."""

    input_ids: torch.Tensor
    """[B, L], right-padded."""
    position_ids: torch.Tensor
    """[B, L]; padding counts on where all lines are single rows without branches, so that positions stay consecutive,
    and is 0 otherwise."""
    segment: torch.Tensor
    """[B, L]; 0 trunk, b ≥ 1 branch of the row, -1 padding."""
    document: torch.Tensor
    """[B, L]; which of the line's rows a token belongs to, -1 padding."""
    attach: torch.Tensor
    """[B, L]; a branch's token sees its row's trunk before this place of the line."""
    gather: torch.Tensor
    """[P]; positions that predict something, each once, as indexes into the flattened [B * L]; padded with 0."""
    source: torch.Tensor
    """[T]; which of the P positions predicts each target; never decreasing."""
    targets: torch.Tensor
    """[T]"""
    completion: torch.Tensor
    """[T]; the completion, 0 … C - 1 over the whole batch, that each target belongs to."""
    row_offsets: torch.Tensor
    """[R + 1]; completions of row r, in the order the rows were given, are row_offsets[r] … row_offsets[r + 1] - 1."""
    causal: bool
    """Every line is one row without branches: plain causal attention will do."""
    n_completions: int
    n_tokens: int
    """Input tokens without padding."""
    longest: int
    """One more than the highest position of a real token."""
    source_on_host: torch.Tensor
    """`source` on the CPU, wherever the batch is."""
    weights: torch.Tensor | None = None
    """float32 [T]; by which each target's log-probability is multiplied before a completion's are added up; None: 1."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        names = ARRAYS if self.weights is None else (*ARRAYS, "weights")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return Batch(**moved, **{name: getattr(self, name) for name in _FACTS})

    def to_numpy(self) -> dict[str, np.ndarray]:
        """Plain int32 arrays, and float32 `weights` if there are some, that `from_numpy` takes back."""
        arrays = {name: getattr(self, name).cpu().numpy().astype(np.int32) for name in ARRAYS}
        return arrays if self.weights is None else arrays | {"weights": self.weights.cpu().numpy()}

    @classmethod
    def from_numpy(cls, arrays: Mapping[str, np.ndarray]) -> Batch:
        """The batch of the arrays of `to_numpy` (or of `collate_numpy`), on the CPU."""
        real = arrays["segment"] != PAD
        tensors = {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.int64)) for name in ARRAYS}
        return cls(
            **tensors,
            causal=bool((arrays["segment"] <= 0).all() and (arrays["document"] <= 0).all()),
            n_completions=int(arrays["row_offsets"][-1]),
            n_tokens=int(real.sum()),
            longest=int(arrays["position_ids"][real].max(initial=-1)) + 1,
            source_on_host=tensors["source"],
            weights=torch.from_numpy(np.array(arrays["weights"])) if "weights" in arrays else None,
        )


_FACTS = ("causal", "n_completions", "n_tokens", "longest", "source_on_host")
ARRAYS = tuple(field.name for field in fields(Batch) if field.name not in (*_FACTS, "weights"))
"""Names of the arrays that `Batch.to_numpy` always gives."""


def collate(
    rows: Sequence[Row], *, pad_multiple: int = 16, pad_to: int | None = None, pack_tokens: int | None = None
) -> Batch:
    """Rows as one batch; see `collate_numpy`."""
    return Batch.from_numpy(collate_numpy(rows, pad_multiple=pad_multiple, pad_to=pad_to, pack_tokens=pack_tokens))


def dense_mask(batch: Batch) -> torch.Tensor:
    """Who sees whom: bool [B, 1, L, L], True where query (dim 2) may attend to key (dim 3).

    Within its row a token sees earlier tokens of its own segment and itself, and a branch's token the trunk up to its
    attach point. Padding sees padding, so that no line of the mask is empty (softmax over nothing is NaN).
    """
    length = batch.segment.shape[1]
    index = torch.arange(length, device=batch.segment.device)
    same_row = batch.document[:, :, None] == batch.document[:, None, :]
    query, key = batch.segment[:, :, None], batch.segment[:, None, :]
    shared = (key == 0) & (index[None, None, :] < batch.attach[:, :, None])
    return (same_row & ((query == key) | shared) & (index[None, :] <= index[:, None])).unsqueeze(1)
