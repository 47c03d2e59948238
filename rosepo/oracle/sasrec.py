"""SASRec (Kang and McAuley, arXiv 1808.09781): a causal transformer over item ids that scores every possible next item.

The preference oracle of RosePO and a baseline of the evaluation. Inside this module an item is its *index*, the row in
the catalogue; 0 is padding, so that item index i enters the network as i + 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from rosepo.utils.errors import UserError

PADDING = 0


@dataclass(frozen=True)
class SASRecConfig:
    """Sizes of the network.

    Args:
        n_items: items of the catalogue.
        max_length: longest history; longer ones lose their oldest items.
        hidden_size, layers, heads, dropout: as in the paper (d, b, number of heads, dropout rate).
    """

    n_items: int
    max_length: int = 50
    hidden_size: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.5


class Dropout(nn.Module):
    """Dropout whose mask on the CPU costs a random byte an element; the rate is rounded to 1/256 there.

    PyTorch draws CPU masks one number at a time on one thread, which is a third of a training step at these sizes.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, values: Tensor) -> Tensor:
        """The same shape, each element dropped with probability `rate` in training."""
        threshold = round(self.rate * 256)
        if not self.training or values.is_cuda or not 0 < threshold < 256:
            return functional.dropout(values, self.rate, self.training)
        words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: values.numel()].view(values.shape) >= threshold
        return values * kept.to(values.dtype).mul_(256 / (256 - threshold))


class Block(nn.Module):
    """Pre-norm causal self-attention and a point-wise feed-forward net, each with a residual (paper, section 3.2).

    Dropout falls on what attention puts out, not on its weights: those would leave the fused kernels.
    """

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_out = nn.Linear(size, size)
        self.feed_norm = nn.LayerNorm(size)
        self.feed = nn.Sequential(
            nn.Linear(size, size),
            nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(size, size),
            Dropout(config.dropout),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, d] to [B, T, d]."""
        rows, length, size = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden)).view(rows, length, 3, self.heads, size // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(rows, length, size)
        hidden = hidden + self.dropout(self.attention_out(mixed))
        return hidden + self.feed(self.feed_norm(hidden))


class SASRec(nn.Module):
    """Item embeddings plus learned positions, causal blocks, and scores by inner product with the same embeddings.

    Histories are padded on the *right* and positions count from the oldest item. Padding is then never attended to (the
    causal mask alone sees to that, and keeps the fast attention kernels), and what the network says at a position is
    exactly what it says for the history cut there: one row trains all prefixes of a sequence.
    """

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.items = nn.Embedding(config.n_items + 1, config.hidden_size, padding_idx=PADDING)
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        nn.init.normal_(self.items.weight, std=config.hidden_size**-0.5)
        nn.init.normal_(self.positions.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[PADDING].zero_()

    def forward(self, history: Tensor) -> Tensor:
        """Hidden states [B, T, d] of histories int64 [B, T]: item index + 1, then 0s; T at most `max_length`."""
        length = history.shape[1]
        if length > self.config.max_length:
            raise ValueError(f"history of {length} items is longer than max_length={self.config.max_length}")
        hidden = self.items(history) * self.config.hidden_size**0.5 + self.positions.weight[:length]
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores float [..., n_items] of hidden states [..., d]."""
        return functional.linear(hidden, self.items.weight[1:])

    def last_hidden(self, history: Tensor) -> Tensor:
        """Hidden states [B, d] at the newest item of each history [B, T]."""
        newest = (history != PADDING).sum(1).sub(1).clamp(min=0)
        hidden = self(history)
        return hidden[torch.arange(len(history), device=history.device), newest]

    def scores(self, history: Tensor) -> Tensor:
        """Scores [B, n_items] of every item as the next one after histories [B, T] as in `forward`."""
        return self.logits(self.last_hidden(history))

    def scores_of(self, history: Tensor, items: Tensor) -> Tensor:
        """Scores [B, C] of items int64 [B, C] (indexes) as the next one after histories [B, T] as in `forward`."""
        return torch.einsum("bd,bcd->bc", self.last_hidden(history), self.items(items + 1))

    def save(self, folder: Path, item_ids: np.ndarray, tau: float = 1.0) -> None:
        """Write `config.json` (sizes, tau, digest of the catalogue) and `model.safetensors` into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {**asdict(self.config), "tau": tau, "catalogue_digest": catalogue_digest(item_ids)}
        (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()},
            folder / "model.safetensors",
        )

    @classmethod
    def load(cls, folder: Path, item_ids: np.ndarray | None = None) -> tuple[SASRec, float]:
        """The network in eval mode and its tau.

        Args:
            item_ids: ids of the catalogue to score, in its order; checked against the stored digest if given.

        Raises:
            UserError: no oracle in the folder, or one of another catalogue.
        """
        try:
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tau, digest = float(about.pop("tau")), about.pop("catalogue_digest")
            config = SASRecConfig(**about)
            weights = load_file(folder / "model.safetensors")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} is not an oracle folder ({error}): run `rosepo oracle` first") from error
        if item_ids is not None and catalogue_digest(item_ids) != digest:
            raise UserError(f"the oracle in {folder} was trained on another catalogue: run `rosepo oracle` again")
        model = cls(config)
        model.load_state_dict(weights)
        return model.eval(), tau


class Ensemble(nn.Module):
    """Several networks on one catalogue, whose scores are averaged."""

    def __init__(self, members: Sequence[SASRec]) -> None:
        super().__init__()
        self.members: Iterable[SASRec] = nn.ModuleList(members)  # type: ignore[assignment]  # it holds any module
        self.config = members[0].config

    def scores(self, history: Tensor) -> Tensor:
        """As in `SASRec.scores`."""
        return torch.stack([member.scores(history) for member in self.members]).mean(0)

    def scores_of(self, history: Tensor, items: Tensor) -> Tensor:
        """As in `SASRec.scores_of`."""
        return torch.stack([member.scores_of(history, items) for member in self.members]).mean(0)


def catalogue_digest(item_ids: np.ndarray) -> str:
    """A short hash of item ids in catalogue order; equal for int64 and their decimal strings."""
    return hashlib.sha256("\n".join(map(str, item_ids.tolist())).encode()).hexdigest()[:16]


def pad_histories(histories: Sequence[np.ndarray], max_length: int) -> Tensor:
    """Item indexes, oldest first, as int64 [B, T] of index + 1, then 0s; T is the longest history, at least 1.

    Histories longer than `max_length` keep their newest items.
    """
    cut = [np.asarray(history, dtype=np.int64)[-max_length:] for history in histories]
    lengths = np.array([len(history) for history in cut], dtype=np.int64)
    padded = np.full((len(cut), max(int(lengths.max(initial=1)), 1)), PADDING, dtype=np.int64)
    if lengths.sum():
        padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate(cut) + 1
    return torch.from_numpy(padded)
