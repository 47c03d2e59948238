"""Which rows a step takes, and how ranks share them: pure functions of (seed, epoch), never of workers.

Rows are shuffled window by window: windows of neighbouring rows come in a random order, and rows inside a window in a
random order of their own. Any step of a table of 10^9 rows is found without holding a permutation of the table, and
rows that are read together lie near one another in the file.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np

WINDOW = 65536
_KEPT_WINDOWS = 8


class Schedule:
    """The rows of every step of a training run.

    Attributes:
        steps: number of steps in all epochs, at least 1.
        steps_per_epoch: steps of one whole epoch; its last batch may be short.
    """

    def __init__(self, n_rows: int, batch_size: int, seed: int, epochs: float = 1.0, window: int = WINDOW) -> None:
        """
        Args:
            n_rows: rows of the table, at least 1.
            batch_size: rows a step over all ranks.
            seed: of the shuffle.
            epochs: passes over the table; a fraction ends inside its last epoch, at a whole batch.
            window: rows shuffled together.

        Raises:
            ValueError: a count below 1, or epochs not above 0.
        """
        if n_rows < 1 or batch_size < 1 or window < 1 or not 0 < epochs < math.inf:
            raise ValueError(f"Schedule(n_rows={n_rows}, batch_size={batch_size}, epochs={epochs}, window={window})")
        self.n_rows, self.batch_size, self.seed, self.window = n_rows, batch_size, seed, window
        self.steps_per_epoch = math.ceil(n_rows / batch_size)
        whole, part = divmod(epochs, 1.0)
        # A hair is taken off before rounding up: .1 + .2 of an epoch must not cost a step through float error.
        self.steps = max(1, int(whole) * self.steps_per_epoch + math.ceil(part * self.steps_per_epoch - 1e-6))
        self._windows = math.ceil(n_rows / window)
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None

    def indices(self, step: int) -> np.ndarray:
        """Rows of a step: int64 [n], n = batch_size but for an epoch's last batch, which may be shorter.

        Raises:
            IndexError: a step outside [0, steps).
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside [0, {self.steps})")
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.batch_size
        stop = min(start + self.batch_size, self.n_rows)
        order, offsets = self._window_order(epoch)
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, stop, side="left"))
        parts = [self._window_rows(epoch, int(order[place])) for place in range(first, last)]
        return np.concatenate(parts)[start - int(offsets[first]) : stop - int(offsets[first])]

    def windows(self, epoch: int) -> Iterator[np.ndarray]:
        """Rows that are shuffled together, in the order in which an epoch takes them: int64 [n], ascending."""
        for window in self._window_order(epoch)[0]:
            yield np.arange(window * self.window, min((window + 1) * self.window, self.n_rows), dtype=np.int64)

    def micro_batches(self, world: int, micro_batch_size: int) -> int:
        """Micro-batches that a rank's rows of a step are dealt out to; rows of too many tokens make more of them."""
        return math.ceil(self.batch_size / (world * micro_batch_size))

    def share(self, step: int, rank: int, world: int, micro_batch_size: int) -> list[np.ndarray]:
        """What one rank takes of a step: `micro_batches(world, micro_batch_size)` int64 arrays of at most
        `micro_batch_size` rows, some possibly empty; the union over ranks is `indices(step)`, every row once.
        """
        mine = self.indices(step)[rank::world]
        return np.array_split(mine, self.micro_batches(world, micro_batch_size))

    def rows_until(self, steps: int) -> int:
        """Rows of the first `steps` steps together, the short last batches of epochs as they are."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self.n_rows + min(rest * self.batch_size, self.n_rows)

    def _window_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows in this epoch's order and the place of each one's first row: int64 [w] and [w + 1]."""
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(self._windows)
            sizes = np.full(self._windows, self.window, dtype=np.int64)
            sizes[order == self._windows - 1] = self.n_rows - (self._windows - 1) * self.window
            self._order = (epoch, order, np.concatenate([[0], np.cumsum(sizes)]))
        return self._order[1], self._order[2]

    def _window_rows(self, epoch: int, window: int) -> np.ndarray:
        key = (epoch, window)
        if key not in self._kept:
            start = window * self.window
            size = min(self.window, self.n_rows - start)
            self._kept[key] = np.random.default_rng([self.seed, epoch, window]).permutation(size) + np.int64(start)
            while len(self._kept) > _KEPT_WINDOWS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
