"""Shared-prefix training on one CUDA device: whether it is exact there, how fast it is, at what share of the peak.

    python benchmarks/gpu.py [--only NAME]… [--shape SHAPE]… [--quick] [--json FILE]

| rows | what is measured |
|---|---|
| parity.* | highest difference of the log-probabilities from those of one row a completion, float32 and bfloat16 |
| speed.SHAPE.METHOD.kK | groups/s of whole training steps in bfloat16, on unique tokens: groups/s, MFU, peak GiB |
| attention.SHAPE | the same steps with FlexAttention against SDPA with a mask |
| trl.SHAPE.kK | groups/s and peak memory against TRL's DPOTrainer, where TRL is installed |

Llama shapes `100m`, `1b`, `8b` with random weights; METHOD is `full` or `lora`, K the rejected titles of a group;
prompts of 400 tokens, titles of 8. What does not fit in the device's memory has the value 0, and its note says so. A
step is forward, DPO on cached reference log-probabilities, backward, clipping and AdamW in the product's DeepSpeed
engine (ZeRO-1, one process) on a collated batch. benchmarks/flops.py says what MFU counts. Medians of five steps,
after two that do not count (three after one with --quick).

`--device cpu --shape tiny` shows that the program runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":  # before libraries are imported, here and in processes: what they print belongs to no table
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}

import torch

from benchmarks.common import Row, table, write_json
from benchmarks.flops import peak_flops
from benchmarks.gpu_steps import SHAPES, Shape, device_name, fitting, steps
from benchmarks.gpu_trl import trl
from benchmarks.reference import groups
from rosepo.lm.rows.batch import collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.rows.rows import group_row
from rosepo.training.engine import prepare_process

KINDS = ("parity", "speed", "attention", "trl")
PARITY_TOLERANCE = 1e-3
"""Of float32 log-probabilities of titles, which are about -70; the two ways sum in different orders."""


def parity(shape: Shape, device: torch.device) -> list[Row]:
    """Shared-prefix rows against one row a completion, on the device.

    Raises:
        ValueError: float32 log-probabilities differ by more than `PARITY_TOLERANCE`.
    """
    rows = []
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        model = shape.model(device, dtype).eval()
        prompts, completions = groups(2, 7, shape.vocabulary)
        flat = [(prompt, ids) for prompt, group in zip(prompts, completions) for ids in group]
        batch = collate([group_row(*group) for group in zip(prompts, completions)]).to(device)
        with torch.no_grad():
            ours = LogpsModel(model)(batch)[0]
            plain = plain_logps(model, *zip(*flat))[0]
        check(apart := float((ours - plain).abs().max()), name)
        rows.append(Row(f"parity.{name}", apart, "nats", "", None, None, "2 groups, K = 7, at most"))
    return rows


def check(apart: float, precision: str) -> None:
    """Raises ValueError where float32 log-probabilities are too far apart, or any are not finite."""
    if not apart < (PARITY_TOLERANCE if precision == "float32" else float("inf")):
        raise ValueError(f"shared-prefix log-probabilities ({precision}) differ from plain ones by {apart:.1e}")


def speed(name: str, shape: Shape, device: torch.device, quick: bool) -> Iterator[Row]:
    """Full training and LoRA, K = 1 and K = 7."""
    peak = peak_flops(device_name(device))
    for method in ("full", "lora"):
        for negatives in (1, 7):
            label = f"speed.{name}.{method}.k{negatives}"
            taken = fitting(lambda method=method, negatives=negatives: steps(shape, method, negatives, device, quick))
            if taken is None:
                yield Row(label, 0.0, "groups/s", "", None, None, "does not fit in the device's memory")
                continue
            note = f"{shape.groups} groups a step, {taken.tokens / taken.seconds:,.0f} unique tokens/s"
            yield Row(label, shape.groups / taken.seconds, "groups/s", "", None, None, note)
            yield Row(f"{label}.memory", taken.gib, "GiB", "", None, None, "max_memory_allocated")
            if peak is not None:
                share = taken.flops / taken.seconds / peak
                yield Row(f"{label}.mfu", 100 * share, "%", "", None, None, f"of {peak / 1e12:,.0f} TFLOP/s")


def attention(name: str, shape: Shape, device: torch.device, quick: bool) -> Iterator[Row]:
    """FlexAttention against SDPA, LoRA, K = 7."""
    found = {
        kind: fitting(lambda kind=kind: steps(shape, "lora", 7, device, quick, attention=kind))
        for kind in ("flex", "sdpa")
    }
    flex, sdpa = found["flex"], found["sdpa"]
    if flex is None or sdpa is None:
        yield Row(f"attention.{name}", 0.0, "groups/s", "", None, None, "does not fit in the device's memory")
        return
    note = f"LoRA, K = 7, {flex.gib:.1f} against {sdpa.gib:.1f} GiB"
    ratio = sdpa.seconds / flex.seconds
    yield Row(
        f"attention.{name}", shape.groups / flex.seconds, "groups/s", "SDPA", shape.groups / sdpa.seconds, ratio, note
    )


def measure(kinds: list[str], shapes: list[str], device: torch.device, quick: bool) -> list[Row]:
    """The rows of these kinds; those that this machine cannot give are told on the screen."""
    rows: list[Row] = []
    if "parity" in kinds:
        rows += parity(SHAPES[shapes[0]], device)
    made = {"speed": speed, "attention": attention, "trl": trl}
    if "attention" in kinds and device.type != "cuda":
        print("attention: FlexAttention is not measured on a CPU")
        del made["attention"]
    if "trl" in kinds and importlib.util.find_spec("trl") is None:
        print("trl: TRL is not installed (pip install -e '.[bench]')")
        del made["trl"]
    for kind, function in made.items():
        for shape in shapes if kind in kinds else []:
            # TRL trains all weights: at 8b neither side fits.
            if kind != "trl" or shape != "8b":
                rows += function(shape, SHAPES[shape], device, quick)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 2 without a CUDA device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", action="append", choices=KINDS, help=", ".join(KINDS))
    parser.add_argument("--shape", action="append", choices=SHAPES, help="default: 100m, 1b and 8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="three steps instead of five")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE too")
    options = parser.parse_args(arguments)
    if options.json is not None and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: its folder does not exist")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py needs a CUDA device, and torch finds none on this machine", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    prepare_process("nccl" if device.type == "cuda" else "gloo")
    rows = measure(options.only or list(KINDS), options.shape or ["100m", "1b", "8b"], device, options.quick)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("deepspeed", "transformers", "peft"))
    print(f"{device_name(device)}, torch {torch.__version__}, {versions}")
    print(table(rows, {}))
    if options.json is not None:
        write_json(options.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
