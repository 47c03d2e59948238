from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.baselines import Markov, Popular, Transitions, top_k, training_transitions, write_transitions
from rosepo.evaluation.measured_examples import plan_parts, write_examples
from tests.evaluation.runs import markov, tiny_run
from tests.helpers import run_table, tiny_catalogue


@settings(deadline=None)
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.lists(st.integers(0, n - 1), min_size=1, max_size=6), min_size=1, max_size=6)
        )
    ),
    st.sampled_from([1, 3, 100]),
)
def test_markov_equals_a_slow_loop_over_transitions(log: tuple[int, list[list[int]]], most: int) -> None:
    """Whether counted at once, item by item or some items at a time; also of a catalogue of one item."""
    n_items, sequences = log
    counts = Counter(item for sequence in sequences for item in sequence)
    followed = Counter(pair for sequence in sequences for pair in pairwise(sequence))
    train_count = np.array([counts[item] for item in range(n_items)])
    pairs = [(np.array(sequence[:-1], dtype=int), np.array(sequence[1:], dtype=int)) for sequence in sequences]
    with tempfile.TemporaryDirectory() as folder:
        write_transitions(pairs, train_count, Path(folder) / "counts", most)
        transitions = Transitions(Path(folder) / "counts")
        assert [path.name for path in Path(folder).iterdir()] == ["counts"]
    found = {(item, int(after)): int(count)
             for item in range(n_items) for after, count in zip(*transitions.after(item))}  # fmt: skip
    assert found == followed
    histories = [np.empty(0, dtype=int), *(np.array([0, item]) for item in range(n_items))]
    ranked, _ = top_k(Markov(transitions, train_count).score_all(histories), [[]] * len(histories), n_items)
    assert ranked[0].tolist() == sorted(range(n_items), key=lambda item: (-counts[item], item))
    for newest, order in enumerate(ranked[1:].tolist()):
        assert order == sorted(range(n_items), key=lambda item: (-followed[newest, item], -counts[item], item))


def test_each_training_target_is_counted_once_when_rows_overlap(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(6)
    (tmp_path / "_trajectories").mkdir()
    rows = [{"items": [0, 1, 2], "n_targets": 2}, {"items": [1, 2, 3], "n_targets": 1}]
    pq.write_table(run_table(rows), tmp_path / "_trajectories" / "part-00000.parquet")
    found = [pair for before, after in training_transitions(tmp_path)
             for pair in zip(before.tolist(), after.tolist())]  # fmt: skip
    assert sorted(found) == [(0, 1), (1, 2), (2, 3)]
    # Items 0 and 4 are the candidates left; neither followed item 3, so the more popular comes first.
    scores = markov(tmp_path, catalogue, tmp_path).score_all([np.array([2])])
    assert top_k(scores, [np.array([2])], 2)[0][0].tolist() == [3, 0]


def test_the_most_popular_come_first_with_ties_in_item_order() -> None:
    catalogue = Catalogue(np.arange(4), list("abcd"), [()] * 4, np.array([2, 5, 5, 0]))
    assert top_k(Popular(catalogue.train_count).score_all([np.array([1])]), [np.array([1])], 3)[0].tolist() == [
        [2, 0, 3]
    ]


WITHOUT_TORCH = """
import json, sys
from pathlib import Path
import pyarrow as pa
from rosepo.evaluation.rankers import Ranker, RankerSettings, ranking

settings, work = json.loads(sys.argv[1])
paths = {name: Path(settings[name]) for name in ("examples", "catalogue", "transitions", "oracle", "out")}
made = Ranker(RankerSettings(**settings | paths, answering=ranking))(pa.Table.from_pylist(work))
assert [made["system"], made["rows"]] == [["popular", "markov"], [24, 24]], made
print([name for name in ("torch", "transformers", "ray.train") if name in sys.modules])
"""


def test_an_actor_that_counts_does_without_torch(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, models=False)
    write_examples(run.examples, "test", None, 24, tmp_path / "examples.parquet")
    pairs = training_transitions(run.examples)
    write_transitions(pairs, Catalogue.load(run.examples / "_items.parquet").train_count, tmp_path / "counts")
    for name in ("popular", "markov"):
        (tmp_path / f"{name}.parquet").mkdir()
    files = {"examples": "examples.parquet", "catalogue": "examples/_items.parquet", "transitions": "counts",
             "oracle": "oracle", "out": ""}  # fmt: skip
    settings = {name: str(tmp_path / file) for name, file in files.items()}
    settings |= {"prompts": None, "max_history": 5, "beams": 20, "models": {}, "device": "cpu", "precision": "float32",
                 "serving": None}  # fmt: skip
    (part,) = plan_parts(tmp_path / "examples.parquet")
    work = [{"system": name, **asdict(part)} for name in ("popular", "markov")]
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps([settings, work])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
