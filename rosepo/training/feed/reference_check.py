"""Whether a groups table was made with the very reference that training has: a few groups, asked again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rosepo.lm.model.policy import load_policy
from rosepo.lm.model.quantized import saved_quantization
from rosepo.lm.rows.batch import Batch
from rosepo.lm.rows.logps import LogpsModel
from rosepo.training.feed.encoders import GroupEncoder
from rosepo.training.feed.plan import Arrays
from rosepo.utils.errors import StageError

PROBED_GROUPS = 8
"""Groups on which the policy's log-probabilities are compared with the table's before the first step."""
TOLERANCE = {"float32": (0.01, 1e-3), "bfloat16": (0.2, 0.01)}
"""Absolute and relative difference that arithmetic alone may make; another model or template is nats away."""
QUANTIZED = (0.3, 0.03)
"""The same over a base in eight or four bits."""


def check_reference(
    probed: pa.Table,
    reference: Path,
    remedy: str,
    logps: Callable[[Arrays], Tensor] | None = None,
    precision: str = "float32",
) -> None:
    """Refuse groups whose reference log-probabilities are not those of the reference.

    Args:
        probed: some groups.
        reference: folder of the model.
        remedy: for the message.
        logps: of a micro-batch's completions, by that model as it stands in an engine of this `precision`. None loads
            it for this alone, in that precision: on the CPU, where training needs no room, or with a quantized base
            where `load_policy` puts it.
        precision: float32 or bfloat16.

    Raises:
        StageError: naming the first group that differs.
    """
    absolute, relative = TOLERANCE[precision]
    if saved_quantization(str(reference)) != "none":
        absolute, relative = QUANTIZED
    encoder, logps = GroupEncoder(), _logps_of(reference, precision) if logps is None else logps
    for place in range(len(probed)):
        (arrays,) = encoder(probed.slice(place, 1), 1)
        expected = arrays["ref_logps"][0]
        found = logps(arrays).float().numpy()
        off = np.abs(found - expected)
        if not (off <= absolute + relative * np.abs(expected)).all():
            worst, example = int(np.argmax(off)), probed["example_id"][place].as_py()
            raise StageError(
                f"the groups were made with another model, tokenizer or template than {reference}: example "
                f"{example} has a reference log-probability of {expected[worst]:.3f} in the table and "
                f"{found[worst]:.3f} under the model; {remedy}"
            )


def _logps_of(folder: Path, precision: str) -> Callable[[Arrays], Tensor]:
    """Log-probabilities of a micro-batch's completions under the model of a folder, on the CPU; it is itself
    where `load_policy` puts it."""
    model = LogpsModel(load_policy(folder, dtype=getattr(torch, precision)))
    device = next(model.parameters()).device  # a quantized base is on the GPU where there is one
    return lambda arrays: model(Batch.from_numpy(arrays).to(device))[0].cpu()
