"""A run as `rosepo align` finds it, made of random tokens: the SFT model's folder and a groups table with its reference
log-probabilities."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import synthetic
from benchmarks.reference import groups as random_groups
from rosepo.config import Config, parse_config
from rosepo.data.catalogue import Catalogue
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.policy import save_policy, train_tokenizer
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.titles.title_scores import reference_logps
from rosepo.run.paths import RunPaths

ITEMS = 500
BETA, LEARNING_RATE = 0.1, 1e-4


class Groups(NamedTuple):
    """G prompts, each with its completions, chosen first."""

    prompts: list[np.ndarray]
    completions: list[list[np.ndarray]]


def settings(**align: Any) -> Config:
    """DPO with AdamW at one constant learning rate, on the model that the benchmarks share; keys go to `align`."""
    plain = {
        "loss": "dpo",
        "rows": "group",
        "epochs": 1,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "min_learning_rate": LEARNING_RATE,
        "warmup_fraction": 0.0,
    }
    scratch = synthetic.SHAPE.model_dump()
    return parse_config({"model": {"scratch": scratch, "max_length": synthetic.MAX_LENGTH}, "align": plain | align})


def make_run(root: Path, n: int, negatives: int) -> RunPaths:
    """A run with the SFT model and `n` groups of `negatives` rejected titles, prompts of 400 tokens, titles of 8."""
    outputs = RunPaths(root)
    write_model(outputs)
    write_groups(outputs, Groups(*random_groups(n, negatives, synthetic.SHAPE.vocab_size)))
    return outputs


def write_model(outputs: RunPaths) -> None:
    """The model of `synthetic.model`, as the `sft` stage leaves one."""
    titles, counts = synthetic.titles(ITEMS)
    tokenizer = train_tokenizer(titles, counts, synthetic.SHAPE)
    catalogue = Catalogue(np.arange(ITEMS), titles, [()] * ITEMS, counts)
    model = synthetic.model(synthetic.SHAPE.vocab_size)
    save_policy(outputs.sft, model, tokenizer, catalogue, model_record(settings(), "sft"))


def write_groups(outputs: RunPaths, groups: Groups, users: Sequence[int] | None = None) -> None:
    """The groups table of `outputs`, scored by its model; see `write_table`."""
    model = LogpsModel(synthetic.model(synthetic.SHAPE.vocab_size))
    write_table(outputs, groups, reference_logps(model, groups.prompts, groups.completions), users)


def write_table(
    outputs: RunPaths, groups: Groups, logps: Sequence[np.ndarray], users: Sequence[int] | None = None
) -> None:
    """The groups table of `outputs`.

    Args:
        logps: the reference's log-probabilities of every group's completions, float32 [1 + K].
        users: user of every group; None makes group i user i's.
    """
    negatives = len(groups.completions[0]) - 1
    made = [
        {
            "example_id": f"{index}:1",
            "user_id": index if users is None else users[index],
            "prompt_ids": prompt.tolist(),
            "chosen_item": 0,
            "chosen_ids": completions[0].tolist(),
            "rejected_items": list(range(1, 1 + negatives)),
            "rejected_ids": [ids.tolist() for ids in completions[1:]],
            "strategy": ["uniform"] * negatives,
            "epsilon": [0.0] * negatives,
            "oracle_scores": [0.0] * (1 + negatives),
            "ref_logps": scores.tolist(),
        }
        for index, (prompt, completions, scores) in enumerate(zip(*groups, logps, strict=True))
    ]
    outputs.groups.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(made), outputs.groups / "part-00000.parquet")


def split_table(outputs: RunPaths, parts: int) -> None:
    """Make the one file of a groups table into so many of about as many groups each."""
    path = outputs.groups / "part-00000.parquet"
    table = pq.read_table(path)
    bounds = [len(table) * part // parts for part in range(parts + 1)]
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), outputs.groups / f"part-{part:05d}.parquet")


def read_groups(outputs: RunPaths) -> Groups:
    """The groups of a run's table."""
    table = pq.read_table(outputs.groups, columns=["prompt_ids", "chosen_ids", "rejected_ids"]).to_pydict()
    prompts, chosen, rejected = (table[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))
    completions = [[one, *others] for one, others in zip(chosen, rejected, strict=True)]
    return Groups([np.array(ids) for ids in prompts], [[np.array(ids) for ids in group] for group in completions])
