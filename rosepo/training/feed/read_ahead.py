"""How far a stream runs ahead of the training that reads it.

By itself Ray Data makes all that fits into its share of the object store. Of small rows that is a whole training's: the
feeding actor would make them as fast as it can while training wants its cores.
"""

from __future__ import annotations

import time

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.interfaces import PhysicalOperator

_BLOCKS = "rosepo.blocks_ahead"
_REST = 0.02
"""Seconds of the executor between two looks at a stream that is held up."""


class ReadAhead(BackpressurePolicy):
    """Takes no more blocks from the feeding actor where enough of them wait for the reader.

    The executor, a thread of the training process, would ask again at once where all tasks have something to give
    (Ray 2.60, `process_completed_tasks`), so it rests here.
    """

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """0 for the last operator of a stream that is far enough ahead; None: as much as there is."""
        if op.output_dependencies or not op.input_dependencies:
            return None
        if self._topology[op].total_enqueued_output_blocks() < self._data_context.get_config(_BLOCKS):
            return None
        time.sleep(_REST)
        return 0


def bound_read_ahead(context: DataContext, blocks: int) -> None:
    """Let a data set's stream be so many blocks ahead of its reader, and what its actor has at hand."""
    context.set_config(_BLOCKS, blocks)
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, ReadAhead])
