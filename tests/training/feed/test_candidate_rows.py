"""Fine-tuning rows of prompts that list candidates: one an example, what a row of its own would teach, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import Config, parse_config
from rosepo.lm.rows.batch import Batch
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.run.paths import RunPaths
from rosepo.training.feed.feed import micro_batches
from rosepo.training.sft import sft_task
from rosepo.utils.errors import UserError
from tests.helpers import tiny_model, with_candidates
from tests.training.tiny_run import ITEMS, tiny_config


def listing_config(candidates: int = 4, **model: Any) -> Config:
    tree = tiny_config(pack_tokens=None).model_dump(exclude_unset=True)
    tree["model"] |= {"template": {"candidates": True}, **model}
    return parse_config(tree | {"prepare": {"candidates": candidates}})


@pytest.fixture(scope="module")
def listed_run(tiny_run: RunPaths, tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """The tiny run with four candidates an example, in two files."""
    outputs = RunPaths(tmp_path_factory.mktemp("listed"))
    outputs.examples.mkdir()
    rng = np.random.default_rng(0)
    table = pq.read_table(tiny_run.examples / "part-00000.parquet")
    lists = []
    for history, target in zip(table["history"].to_pylist(), table["target"].to_pylist(), strict=True):
        free = np.setdiff1d(np.arange(ITEMS), [*history, target])
        lists.append(rng.permutation([target, *rng.choice(free, 3, replace=False)]).tolist())
    table = with_candidates(table, lists)
    for part, (start, count) in enumerate(((0, 90), (90, len(table) - 90))):
        pq.write_table(table.slice(start, count), outputs.examples / f"part-{part:05d}.parquet", row_group_size=40)
    (outputs.examples / "_items.parquet").write_bytes((tiny_run.examples / "_items.parquet").read_bytes())
    return outputs


def test_every_training_example_is_a_row_an_epoch_and_no_other_is(listed_run: RunPaths) -> None:
    task = sft_task(listing_config(), listed_run)
    table = pa.concat_tables([pq.read_table(path) for path in sorted(listed_run.examples.glob("part-*"))])
    train = [row for row in table.to_pylist() if row["split"] == "train"]
    assert task.plan.n_rows == len(train) < len(table)
    taken = task.plan.take(task.plan.open(), np.arange(task.plan.n_rows))
    assert taken.to_pylist() == [{name: row[name] for name in taken.column_names} for row in train]
    units = [batch["units"] for batch in micro_batches(task.plan, rank=0, world=1) if batch]
    assert float(np.sum(units)) == len(train)


def test_a_row_with_candidates_teaches_what_one_row_a_completion_does(listed_run: RunPaths) -> None:
    task = sft_task(listing_config(), listed_run)
    encoder: Any = task.plan.encoder
    builder = encoder.builder
    model = tiny_model(vocab_size=400)
    rows = task.plan.take(task.plan.open(), np.array([3, 40, 77]))
    (arrays,) = encoder(rows, 1)
    with torch.inference_mode():
        found = LogpsModel(model)(Batch.from_numpy(arrays))[0].numpy()
        prompts, titles = [], []
        for row in rows.to_pylist():
            listed = [builder.pieces([item])[0] for item in row["candidates"]]
            liked = [builder.pieces([item])[0] for item in row["history"]]
            head, prefix = builder.prompt([], candidates=[])[0][:1], builder.head[1:]
            opening = builder.prompt([], candidates=[])[0]
            opening = opening[1 : len(opening) - len(prefix) - len(builder.tail)]
            prompts.append(np.concatenate([head, opening, *listed, prefix, *liked, builder.tail]))
            titles.append(builder.completion(row["target"]))
        expected = plain_logps(model, prompts, titles)[0].numpy()
    np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-4)


def test_validation_looks_at_prompts_with_candidates_too(listed_run: RunPaths) -> None:
    task = sft_task(listing_config(), listed_run)
    encoder: Any = task.plan.encoder
    opening = encoder.builder.prompt([], candidates=[])[0][:8].tolist()
    rows = [row[:8].tolist() for arrays in task.validation for row in arrays["input_ids"]]
    table = pa.concat_tables([pq.read_table(path) for path in sorted(listed_run.examples.glob("part-*"))])
    assert rows == [opening] * table["split"].to_pylist().count("validation")


def test_candidates_for_which_there_is_no_room_are_refused_before_work(listed_run: RunPaths) -> None:
    with pytest.raises(UserError, match=r"max_length=60 has no room for the candidates of example .*raise it to"):
        sft_task(listing_config(max_length=60), listed_run)


def test_examples_without_lists_are_refused(tiny_run: RunPaths) -> None:
    with pytest.raises(UserError, match="has no candidate lists, which prompts list"):
        sft_task(listing_config(), tiny_run)
