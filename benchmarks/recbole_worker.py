"""RecBole's SASRec under orders: run by the interpreter that has RecBole, never imported.

`python recbole_worker.py FOLDER` reads `settings.json` (RecBole's own keys, and `threads`) and the atomic files below
FOLDER, says `{"ready": …}` with what it found, and then answers one JSON line on standard output to each on standard
input:

    {"do": "epoch"}                                       one training epoch: {"seconds": …, "cpu_seconds": …}
    {"do": "fit", "seconds": …}                           train anew until validation gets no better or time is up
    {"do": "scores", "split": …, "items": […], "to": …}   float32 [examples, items] as .npy, examples in file order

RecBole is used as it is: its dataset, data loader, trainer, early stopping. One thing is put right in its favour:
importing its models switches PyTorch's anomaly detection on for the whole process (`sine.py` does), and every backward
pass then looks for NaNs; here it is off. This file needs nothing of rosepo.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


class OutOfTime(Exception):
    """The time for training is over."""


class Worker:
    """A SASRec of RecBole, its data and its trainer."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.autograd.set_detect_anomaly(False)
        torch.set_num_threads(settings.pop("threads"))
        self.config = Config(model="SASRec", dataset=settings.pop("dataset"), config_dict=settings)
        self.dataset = create_dataset(self.config)
        self.train, *held_out = data_preparation(self.config, self.dataset)
        self.held_out = dict(zip(("valid", "test"), held_out))
        self._start()

    def _start(self) -> None:
        """A model that has learned nothing yet."""
        init_seed(self.config["seed"], self.config["reproducibility"])
        self.model = SASRec(self.config, self.train._dataset).to(self.config["device"])
        self.trainer = Trainer(self.config, self.model)
        self.epochs = 0

    def about(self) -> dict[str, Any]:
        """What was read: to be compared with what was written."""
        return {
            "items": self.dataset.item_num - 1,  # its 0 is padding
            "examples": {name: digest(data._dataset) for name, data in {"train": self.train, **self.held_out}.items()},
            "steps": len(self.train),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "max_length": self.model.max_seq_length,
        }

    def epoch(self) -> dict[str, Any]:
        """One epoch of training, timed as RecBole's `Trainer.fit` times it: loading of batches included."""
        started, cpu = time.perf_counter(), time.process_time()
        self.trainer._train_epoch(self.train, self.epochs)
        self.epochs += 1
        return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}

    def fit(self, seconds: float) -> dict[str, Any]:
        """RecBole's own training from the start; afterwards the model is the one that was best on validation."""
        self._start()
        started = time.perf_counter()
        epochs = best_epoch = 0
        best: dict[str, torch.Tensor] = {}

        def look(epoch: int, score: float) -> None:
            nonlocal epochs, best_epoch
            epochs = epoch + 1
            # It is called after the early stopping has looked: a score that is the best one is this epoch's.
            if score == self.trainer.best_valid_score:
                best_epoch = epochs
                best.update({name: value.clone() for name, value in self.model.state_dict().items()})
            if time.perf_counter() - started > seconds:
                raise OutOfTime

        stopped = True
        try:
            # Kept here and not by RecBole, whose checkpoints are pickles.
            self.trainer.fit(self.train, self.held_out["valid"], verbose=False, saved=False, callback_fn=look)
        except OutOfTime:
            stopped = False
        self.model.load_state_dict(best)
        return {
            "epochs": epochs,
            "best": best_epoch,
            "converged": stopped,
            "seconds": time.perf_counter() - started,
        }

    @torch.no_grad()
    def scores(self, split: str, items: list[int], to: str) -> dict[str, Any]:
        """Scores of `items` (ids) for every example of a split, in the order of its file."""
        self.model.eval()
        tokens = self.dataset.field2token_id[self.dataset.iid_field]
        columns = torch.tensor([tokens[str(item)] for item in items])
        found = [self.model.full_sort_predict(batch[0])[:, columns].numpy() for batch in self.held_out[split]]
        np.save(to, np.concatenate(found))
        return {}


def digest(dataset: Any) -> str:
    """A hash of histories and targets as the network gets them, as ids, in order; see `oracle.digest`."""
    token = dataset.field2id_token[dataset.iid_field]
    histories = dataset.inter_feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]].tolist()
    lengths = dataset.inter_feat[dataset.item_list_length_field].tolist()
    targets = dataset.inter_feat[dataset.iid_field].tolist()
    lines = (
        " ".join(token[item] for item in history[:length]) + "\t" + token[target]
        for history, length, target in zip(histories, lengths, targets)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main(folder: Path) -> None:
    """Answer orders until standard input ends."""
    # Whatever libraries print goes to standard error: the answers have standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    os.chdir(folder)
    del sys.argv[1:]  # RecBole takes them for settings
    worker = Worker(json.loads(Path("settings.json").read_text(encoding="utf-8")))
    print(json.dumps({"ready": worker.about()}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(getattr(worker, order.pop("do"))(**order)), file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
