"""What a rank holds and waits for when a model is divided: a few steps of `sft` by two workers at ZeRO-3 in bfloat16.

    python benchmarks/sharding.py [--layers N] [--lora] [--precision float32] [--steps N]

A random Llama of width 1536 in a folder (bfloat16, 28 million parameters a layer; 20 layers are 0.6 billion), all of
its weights or a LoRA adapter, a checkpoint after every second step. Told of each rank: the highest resident memory
until the model stands in the engine, until the last step is done, and in all, in MiB (what is mapped from files
included); then seconds that training stood still for a checkpoint, seconds of a step (the median), and what a
checkpoint weighs. Without Ray, whose own processes are not a rank's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":  # before libraries are imported, here and in processes: what they print belongs to no table
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    os.environ |= {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from benchmarks.ranks import on_ranks
from benchmarks.synthetic import titles
from rosepo.config import Config, ScratchConfig, TemplateConfig, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import INDEX
from rosepo.run.paths import RunPaths
from rosepo.utils.memory import return_freed

WORLD, ITEMS, ROWS = 2, 400, 8
EVERY = 2
"""Steps between two checkpoints."""
MAX_LENGTH = 128


def write_run(root: Path, layers: int, steps: int, width: int = 1536) -> RunPaths:
    """The examples of a run, and the folder `base` of a random model."""
    from transformers import LlamaForCausalLM

    from rosepo.lm.model.scratch import scratch_config, train_tokenizer

    return_freed(2**20)  # what is not a rank's is small then
    outputs = RunPaths(root)
    names, counts = titles(ITEMS)
    (outputs.examples / "_trajectories").mkdir(parents=True)
    catalogue = Catalogue(np.arange(ITEMS, dtype=np.int64), names, [()] * ITEMS, counts)
    catalogue.save(outputs.examples / "_items.parquet")
    random = np.random.default_rng(0)
    walks = [random.choice(ITEMS, 5, replace=False).tolist() for _ in range(ROWS * steps)]
    trajectories = {
        "user_id": list(range(len(walks))),
        "items": pa.array(walks, pa.list_(INDEX)),
        "n_targets": pa.array([4] * len(walks), pa.int32()),
    }
    pq.write_table(pa.table(trajectories), outputs.examples / "_trajectories" / "part-00000.parquet")
    columns = [("example_id", pa.string()), ("user_id", pa.int64()), ("split", pa.string()), ("position", pa.int32())]
    schema = pa.schema([*columns, ("history", pa.list_(INDEX)), ("target", INDEX)])
    pq.write_table(schema.empty_table(), outputs.examples / "part-00000.parquet")
    shape = ScratchConfig(hidden_size=width, layers=layers, heads=12, intermediate_size=width * 8 // 3, vocab_size=8192)
    tokenizer = train_tokenizer(names, counts, shape, TemplateConfig())
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(scratch_config(shape, len(tokenizer), 512))
    torch.set_default_dtype(before)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    print(f"{model.num_parameters() / 1e6:,.0f} million parameters", flush=True)
    return outputs


def settings(base: Path, lora: bool, precision: str, steps: int) -> Config:
    """A training of so many steps."""
    model: dict[str, Any] = {"path": str(base), "max_length": MAX_LENGTH}
    if lora:
        model["lora"] = {"rank": 16}
    train = {
        "batch_size": ROWS,
        "micro_batch_size": ROWS // WORLD,
        "epochs": 1.0,
        "zero_stage": 3,
        "precision": precision,
        "workers": WORLD,
        "checkpoint_every": EVERY,
        "learning_rate": 1e-5,
    }
    return parse_config({"seed": 0, "model": model, "sft": train})


def rank_training(rank: int, world: int, run: Path, config: Config) -> dict[str, Any]:
    """One rank's training; rank 0 returns what all of them measured."""
    from rosepo.training.checkpoint.saver import Saver
    from rosepo.training.engine import prepare_process
    from rosepo.training.feed.feed import micro_batches
    from rosepo.training.rank import train_rank
    from rosepo.training.sft import sft_task

    prepare_process()
    task = sft_task(config, RunPaths(run))
    base, stood, trained, at = peak_mib(), 0.0, 0.0, 0.0
    marks: list[float] = []
    size = 0
    finish = Saver.finish

    def fed() -> Iterator[Any]:
        nonlocal stood
        for arrays in micro_batches(task.plan, rank, world):
            stood = stood or peak_mib()
            marks.append(time.perf_counter())
            yield arrays

    def finished(saver: Saver, *arguments: Any) -> None:
        nonlocal trained, at, size
        trained, at = peak_mib(), time.perf_counter()
        finish(saver, *arguments)
        size = sum(path.stat().st_size for path in (run / "out").glob("_checkpoints/step-*/*.safetensors"))

    Saver.finish = finished  # type: ignore[method-assign]
    figures = train_rank(task, fed(), run / "out", resumable=True)
    steps = np.diff([*marks, at])
    found = {
        "libraries": base,
        "loaded": stood,
        "trained": trained,
        "all": peak_mib(),
        "lost": figures["checkpoint_share"] * figures["train_seconds"] / ((len(steps) - 1) // EVERY),
        "step": float(np.median(steps)),
        "checkpoint": size / 2**20,
    }
    every: list[dict[str, Any]] = [{}] * world
    dist.all_gather_object(every, found)
    return {"ranks": every}


def peak_mib() -> float:
    """Highest resident memory of this process so far (Linux), what it has mapped from files included."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rosepo-benchmark-sharding-") as folder:
        write_run(Path(folder), chosen.layers, chosen.steps)
        config = settings(Path(folder) / "base", chosen.lora, chosen.precision, chosen.steps)
        found = on_ranks(WORLD, 1, rank_training, Path(folder), config)
    for rank, figures in enumerate(found["ranks"]):
        told = ", ".join(f"{name} {value:,.{2 if name in ('lost', 'step') else 0}f}" for name, value in figures.items())
        print(f"rank {rank}: {told}", flush=True)


if __name__ == "__main__":
    main()
