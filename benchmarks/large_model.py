"""What a large model takes on its way through every stage: `rosepo run` with a random Llama, watched from outside.

    python benchmarks/large_model.py --out runs/large [--layers 22] [--lora] [--users 40] [--set KEY=VALUE]

A Llama of width 2048 with random weights (bfloat16; 44 million parameters a layer and two embeddings of 32,000 tokens,
so that 22 layers are 1.1 billion) and a tokenizer of MovieTweetings' titles is written into a folder; then all stages
run on a few users, with training by two workers under ZeRO-3. Told are the seconds of each stage and the highest
resident memory of the driver and of each kind of Ray worker, in GiB, as the system keeps it (VmHWM: what is mapped from
files and shared between processes included).
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rosepo.config import ScratchConfig
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths

VOCABULARY = 32_000
TRAINING = {
    "workers": 2,
    "cpus_per_worker": 0.5,
    "zero_stage": 3,
    "precision": "bfloat16",
    "batch_size": 4,
    "micro_batch_size": 1,
    "log_every": 1,
    "validate_every": 1000,
}
ACTORS = {"actors": 1, "cpus_per_actor": 1, "precision": "bfloat16"}


def main() -> None:
    """Make the model, run the stages, print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and the run")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--lora", action="store_true", help="train an adapter of rank 16 and not all weights")
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings of rosepo")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    config = write_config(out, options.users, options.lora)
    given = [part for setting in options.set for part in ("--set", setting)]
    arguments = ["--config", str(config), "--out", str(out / "run"), *given]
    watched("prepare", *arguments)
    parameters = write_model(out, options.layers)
    held = watched("run", *arguments)
    stages = [read_manifest(folder) for folder in stage_folders(RunPaths(out / "run"))]
    rows = {str(found["stage"]): (found["seconds"], found["peak_memory"] / 2**30) for found in stages if found}
    print(f"\n{parameters / 1e9:.2f} billion parameters, {'LoRA' if options.lora else 'all weights'}\n")
    lines = ["| stage | seconds | GiB of all processes |", "|---|---|---|"]
    lines += [f"| {stage} | {seconds:.0f} | {gib:.1f} |" for stage, (seconds, gib) in rows.items()]
    lines += ["", "| process | GiB at most |", "|---|---|"]
    lines += [f"| {name} | {peak:.2f} |" for name, peak in held.items()]
    print("\n".join(lines))


def stage_folders(run: RunPaths) -> list[Path]:
    """In the order in which they are made."""
    return [run.examples, run.sft, run.oracle, run.groups, run.aligned, run.evaluation]


def write_config(out: Path, users: int, lora: bool) -> Path:
    """The settings of the run."""
    settings = {
        "data": {"dataset": "movietweetings-100k"},
        "prepare": {
            "min_rating": 7,
            "k_core": 5,
            "max_history": 10,
            "max_users": users,
            "duplicate_titles": "disambiguate",
        },
        "model": {"path": str(out / "model"), "max_length": 256},
        "sft": {**TRAINING, "epochs": 1},
        "oracle": {"max_epochs": 3},
        "pairs": {
            **ACTORS,
            "negatives": 3,
            "groups_per_user": 1,
            "strategies": {"self_hard": 1, "semantic": 1, "popular": 1},
        },
        "align": {**TRAINING, "epochs": 1},
        "evaluate": {**ACTORS, "num_beams": 4, "max_examples": 8},
    }
    if lora:
        settings["model"]["lora"] = {"rank": 16, "alpha": 32}
    path = out / "large.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def write_model(out: Path, layers: int) -> int:
    """The folder `model`, from the run's titles; the number of its parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    catalogue = Catalogue.load(RunPaths(out / "run").examples / ITEMS_FILE)
    tokenizer = train_tokenizer(catalogue.titles, catalogue.train_count, ScratchConfig(vocab_size=1024, whole_titles=0))
    shape = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(shape)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(out / "model", max_shard_size="1GB")
    tokenizer.save_pretrained(out / "model")
    return sum(parameter.numel() for parameter in model.parameters())


def watched(*arguments: str) -> dict[str, float]:
    """Run a command of rosepo; GiB at most of the driver, and of the largest worker of each kind."""
    command = subprocess.Popen([sys.executable, "-m", "rosepo", *arguments])
    peaks: dict[str, float] = defaultdict(float)
    while command.poll() is None:
        with contextlib.suppress(psutil.Error):
            driver = psutil.Process(command.pid)
            peaks["driver"] = max(peaks["driver"], high_water(driver.pid))
            for process in driver.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    name = process.cmdline()[0].split("(")[0].strip()
                    if name.startswith("ray::"):
                        peaks[name] = max(peaks[name], high_water(process.pid))
        time.sleep(0.5)
    if command.returncode:
        raise SystemExit(f"rosepo {arguments[0]} ended with {command.returncode}")
    return dict(peaks)


def high_water(pid: int) -> float:
    """GiB that a process held at most; 0 where it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return 0.0


if __name__ == "__main__":
    main()
