"""One epoch of the oracle beside one of RecBole's SASRec, and how well both rank.

RecBole 1.2.1 needs older libraries than rosepo and so an environment of its own:

    python3.11 -m venv .venv-recbole
    .venv-recbole/bin/pip install -r benchmarks/recbole-requirements.txt
    export ROSEPO_RECBOLE_PYTHON=$PWD/.venv-recbole/bin/python
    python benchmarks/sampling.py --only oracle

What is compared. The data set that ships with rosepo, prepared by `rosepo prepare`; RecBole reads those very examples
(its `benchmark_filename`: one line a history and its target), which is checked by a hash of what its network is given.
Both networks have the same hidden size, layers, heads, feed-forward size, longest history and dropout, cross-entropy
over the full catalogue, and the same mean number of targets in a step of the optimizer. RecBole makes a row of every
prefix of a sequence and predicts one item from it; rosepo predicts at all positions of one row. So an epoch shows each
training target once to either, and the seconds an epoch are those of the same work. Epochs take turns in one run, on
the same number of threads; the first of each is left out.

How well they rank is measured on the test split, for the models that each one's own early stopping keeps (rosepo's is
that of the `oracle` stage): all items that the user had not chosen before compete, and one piece of code ranks and
counts for both. RecBole trains with its own defaults there (feed-forward size 256, dropout on attention weights too,
2048 targets a step) but for hidden size, layers, heads and dropout, which are rosepo's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.common import Row
from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.data.item_columns import item_lists, items_of
from rosepo.data.seen import read_split
from rosepo.evaluation.baselines import top_k
from rosepo.metrics.bootstrap import Estimate, UserBootstrap
from rosepo.metrics.ranking import hit_ratio, target_ranks
from rosepo.oracle.crossfit import Oracle
from rosepo.oracle.fit import _Run
from rosepo.oracle.log import Sequences, read_sequences
from rosepo.oracle.sasrec import SASRec, SASRecConfig
from rosepo.oracle.sasrec_data import NextItemLoss, epoch_batches
from rosepo.pipeline.kept_config import resolve_config

VARIABLE = "ROSEPO_RECBOLE_PYTHON"
CONFIG = Path(__file__).parents[1] / "jobs" / "configs" / "demo.yaml"
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
EPOCHS, QUICK_EPOCHS = 4, 2
"""Epochs a system, of which the first is not counted."""
FIT_SECONDS = 600
PATIENCE = 10
DEFAULT_BATCH = 2048
"""RecBole's own `train_batch_size`."""


def rows(quick: bool) -> list[Row]:
    """`oracle.epoch`, and `oracle.hr@10` unless `quick`; rosepo's epoch alone where no Python with RecBole is named."""
    python = os.environ.get(VARIABLE)
    with tempfile.TemporaryDirectory(prefix="rosepo-benchmark-") as folder, contextlib.ExitStack() as stack:
        data = Prepared.make(Path(folder))
        ours = data.new_run()
        settings = recbole_settings(data, ours) if python else {}
        if quick:
            settings = {name: keys for name, keys in settings.items() if name == "same"}
        # Started together, and read from once all are there.
        rivals = {name: stack.enter_context(Rival(str(python), data, name, keys)) for name, keys in settings.items()}
        for rival in rivals.values():
            rival.check(data)
        found = [epoch_row(data, ours, rivals, quick)]
        return found if quick or not rivals else [*found, accuracy_row(data, rivals)]


@dataclass(frozen=True)
class Prepared:
    """The examples that both read, below `folder`."""

    folder: Path
    config: Config
    catalogue: Catalogue
    examples: dict[str, pa.Table]
    train: Sequences
    max_length: int

    @classmethod
    def make(cls, folder: Path) -> Prepared:
        """Run `rosepo prepare` on the configuration of the demo."""
        run = folder / "run"
        rosepo("prepare", "--config", str(CONFIG), "--out", str(run))
        config = resolve_config(run, None, [])
        catalogue = Catalogue.load(run / "examples" / "_items.parquet")
        examples = {name: pa.concat_tables(read_split(run / "examples", name)) for name in SPLITS}
        train, _ = read_sequences(run / "examples", config.oracle.folds, config.seed)
        return cls(run, config, catalogue, examples, train, config.prepare.max_history)

    def new_run(self) -> _Run:
        """The training loop of the `oracle` stage, one worker on the CPU, before its first step."""
        oracle = self.config.oracle
        torch.manual_seed(self.config.seed)
        sizes = (oracle.hidden_size, oracle.layers, oracle.heads, oracle.dropout)
        model = SASRec(SASRecConfig(len(self.catalogue), self.max_length, *sizes))
        return _Run(oracle, model, NextItemLoss(model), 0, 1, torch.device("cpu"), self.config.seed)

    def write_atomic(self, folder: Path) -> None:
        """RecBole's three files: a line an example, its history and its target, whose tokens are item indexes."""
        folder.mkdir(parents=True)
        for name, suffix in SPLITS.items():
            table = self.examples[name]
            columns = (table[column].to_pylist() for column in ("user_id", "target", "history"))
            with (folder / f"{folder.name}.{suffix}.inter").open("w", encoding="utf-8") as file:
                file.write("user_id:token\titem_id:token\titem_id_list:token_seq\n")
                file.writelines(
                    f"{user}\t{target}\t{' '.join(map(str, past))}\n" for user, target, past in zip(*columns)
                )


def recbole_settings(data: Prepared, ours: _Run) -> dict[str, dict[str, Any]]:
    """RecBole's keys: the `same` sizes and targets a step, and its own `defaults`."""
    oracle = data.config.oracle
    steps = len(epoch_batches(data.train.lengths, oracle.batch_size, data.config.seed, 1))
    common = {
        "threads": torch.get_num_threads(),
        "dataset": "examples",
        "data_path": "data",
        "benchmark_filename": list(SPLITS.values()),
        "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": data.max_length,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "metrics": ["NDCG", "Hit"],
        "topk": [10],
        "valid_metric": "NDCG@10",
        "stopping_step": PATIENCE,
        "epochs": 1000,
        "seed": data.config.seed,
        "use_gpu": False,
        "show_progress": False,
        "train_batch_size": DEFAULT_BATCH,
        "n_layers": oracle.layers,
        "n_heads": oracle.heads,
        "hidden_size": oracle.hidden_size,
        "hidden_dropout_prob": oracle.dropout,
    }
    # rosepo has no dropout on attention weights, and a feed-forward net as wide as the rest (as the paper has it).
    sizes = {"inner_size": oracle.hidden_size, "hidden_act": "relu", "attn_dropout_prob": 0.0}
    same = {**common, **sizes, "train_batch_size": round(int(data.train.n_targets.sum()) / steps)}
    return {"same": same, "defaults": common}


class Rival:
    """A process that runs `recbole_worker.py`."""

    def __init__(self, python: str, data: Prepared, name: str, settings: dict[str, Any]) -> None:
        self.folder = data.folder.parent / name
        data.write_atomic(self.folder / "data" / "examples")
        (self.folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        self._log = (self.folder / "log").open("w+", encoding="utf-8")
        command = [python, str(Path(__file__).with_name("recbole_worker.py")), str(self.folder)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.settings = settings

    def __enter__(self) -> Rival:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def check(self, data: Prepared) -> None:
        """Wait until it has read its files, and see that these are the same examples and items."""
        about = self._answer()["ready"]
        digests = {suffix: digest(data.examples[name]) for name, suffix in SPLITS.items()}
        if about["examples"] != digests or about["items"] != len(data.catalogue):
            raise RuntimeError(f"RecBole read other examples than were written: {about}")

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One order and its answer."""
        assert self._process.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
        return self._answer()

    def scores(self, data: Prepared, split: str) -> np.ndarray:
        """Float32 [examples, items] of a split, items in the order of the catalogue."""
        to = self.folder / f"{split}.npy"
        self.ask("scores", split=SPLITS[split], items=list(range(len(data.catalogue))), to=str(to))
        return np.load(to)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(f"RecBole's process ended: {self._log.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def epoch_row(data: Prepared, ours: _Run, rivals: dict[str, Rival], quick: bool) -> Row:
    """Seconds an epoch, taken in turns; the median of those after the first."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ("ours", *rivals)}
    for epoch in range(1, (QUICK_EPOCHS if quick else EPOCHS) + 1):
        started, cpu = time.perf_counter(), time.process_time()
        ours.epoch(data.train, epoch)
        taken["ours"].append((time.perf_counter() - started, time.process_time() - cpu))
        for name, rival in rivals.items():
            answer = rival.ask("epoch")
            taken[name].append((answer["seconds"], answer["cpu_seconds"]))
    median, cpu_median = ({n: float(np.median([t[i] for t in v[1:]])) for n, v in taken.items()} for i in (0, 1))
    if not rivals:
        missing = f"no rival: {VARIABLE} must name a Python with RecBole, see benchmarks/oracle.py"
        return Row("oracle.epoch", median["ours"], "s", "", None, None, missing)
    turns = np.array([theirs[0] / own[0] for theirs, own in zip(taken["same"], taken["ours"])][1:])
    note = (
        f"{int(data.train.n_targets.sum()):,} targets an epoch in {len(data.train):,} rows (RecBole: one a target), "
        f"{rivals['same'].settings['train_batch_size']} targets a step in either, {torch.get_num_threads()} threads, "
        f"epochs in turns: {len(turns)} each, ratio {turns.min():.1f} to {turns.max():.1f}, "
        f"CPU seconds {cpu_median['ours']:.1f} and {cpu_median['same']:.1f}; "
    )
    if quick:
        note += "HR@10 is not compared in a quick run"
    else:
        note += f"RecBole with its own defaults: {median['defaults']:.2f} s"
    return Row(
        "oracle.epoch",
        median["ours"],
        "s",
        "RecBole 1.2.1 SASRec",
        median["same"],
        median["same"] / median["ours"],
        note,
    )


def accuracy_row(data: Prepared, rivals: dict[str, Rival]) -> Row:
    """HR@10 on the test split of what early stopping keeps, and the paired interval of the difference."""
    oracle = {
        "folds": 1, "workers": 1, "cpus_per_worker": torch.get_num_threads(), "gpu": "no",
        "max_epochs": 1000, "evaluate_every": 1, "patience": PATIENCE, "max_seconds": FIT_SECONDS,
    }  # fmt: skip
    rosepo("oracle", "--out", str(data.folder), *(f"--set=oracle.{key}={value}" for key, value in oracle.items()))
    figures = json.loads((data.folder / "oracle" / "_manifest.json").read_text(encoding="utf-8"))["figures"]
    ours = Oracle.load(data.folder / "oracle", data.catalogue.item_ids)
    past = item_lists(data.examples["test"], "history")
    theirs = rivals["defaults"]
    fit = theirs.ask("fit", seconds=FIT_SECONDS)
    series = {
        "rosepo": hits(data, "test", ours.score_all(past)),
        "RecBole": hits(data, "test", theirs.scores(data, "test")),
    }
    users = data.examples["test"]["user_id"].to_numpy()
    drawn = UserBootstrap(users, 2000, data.config.seed).resample(series)
    own, other = drawn.mean("rosepo"), drawn.mean("RecBole")
    note = (
        f"test split, {len(users):,} users, 95 % intervals; rosepo {_told(own)} in "
        f"{figures['training_seconds']:.0f} s and {figures['epochs']} epochs; RecBole {_told(other)} in "
        f"{fit['seconds']:.0f} s and {fit['epochs']} epochs{'' if fit['converged'] else ' (out of time)'}; "
        f"rosepo minus RecBole: {_told(drawn.difference('rosepo', 'RecBole'))}"
    )
    return Row("oracle.hr@10", own.value, "HR@10", "RecBole 1.2.1 SASRec", other.value, own.value / other.value, note)


def hits(data: Prepared, split: str, scores: np.ndarray) -> np.ndarray:
    """1.0 where the target is among the ten best items that were not seen, float64 [examples]."""
    table = data.examples[split]
    found, _ = top_k(scores, item_lists(table, "seen"), 10)
    return hit_ratio(target_ranks(found, items_of(table, "target")), 10)


def digest(table: pa.Table) -> str:
    """A hash of the examples' histories and targets, in order; see `recbole_worker.digest`."""
    histories, targets = table["history"].to_pylist(), table["target"].to_pylist()
    lines = (" ".join(map(str, history)) + f"\t{target}" for history, target in zip(histories, targets))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def rosepo(*arguments: str) -> None:
    """A command of rosepo, in a process of its own; what it prints is shown on standard error."""
    subprocess.run([sys.executable, "-m", "rosepo", *arguments], check=True, stdout=sys.stderr)


def _told(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"
