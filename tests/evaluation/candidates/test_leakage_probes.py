"""Rules that know nothing of the user, on candidate lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rosepo.evaluation.candidates.leakage_probes import learn_probes
from tests.helpers import run_table, tiny_catalogue


def write_lists(folder: Path, rows: list[tuple[str, int, list[int]]]) -> None:
    table = run_table([dict(zip(("split", "target", "candidates"), row)) for row in rows])
    folder.mkdir()
    half = len(table) // 2
    pq.write_table(table.slice(0, half), folder / "part-00000.parquet")
    pq.write_table(table.slice(half), folder / "part-00001.parquet")


def test_probes_learn_from_other_lists_and_know_nothing_of_those_they_are_measured_on(tmp_path: Path) -> None:
    catalogue = tiny_catalogue(10)  # falling popularity
    rng = np.random.default_rng(0)
    rows = []
    for row in range(400):
        others = rng.permutation(10)[:4]
        target = int(others[2])  # in training always in the third slot
        if row % 2:
            others[[0, 2]] = others[[2, 0]]  # in the test lists always in the first
        rows.append(("test" if row % 2 else "train", target, others.tolist()))
    write_lists(tmp_path / "examples", rows)
    probes = learn_probes(tmp_path / "examples", "test", catalogue)
    assert probes.slots.tolist() == [0, 0, 200, 0]
    candidates = np.array([items for split, _, items in rows if split == "test"])
    targets = candidates[:, 0]
    found = probes.series(candidates, targets)
    assert set(found["slot"].tolist()) == {0.0}
    assert set(found["chance"].tolist()) == {0.25}
    np.testing.assert_array_equal(found["popularity"], candidates.argmin(axis=1) == 0)
    assert probes.series(candidates, candidates[:, 2])["slot"].mean() == 1.0


def test_a_slot_that_follows_from_the_target_is_found_by_the_probe_of_items_in_slots(tmp_path: Path) -> None:
    catalogue, rng = tiny_catalogue(10), np.random.default_rng(1)
    rows = []
    for row in range(600):
        items = rng.permutation(10)[:4]
        target = int(items[0])
        listed = items[1:].tolist()
        listed.insert(target % 4, target)  # shuffled by a generator seeded with the target
        rows.append(("train" if row < 400 else "test", target, listed))
    write_lists(tmp_path / "examples", rows)
    probes = learn_probes(tmp_path / "examples", "test", catalogue)
    tested = [row for row in rows if row[0] == "test"]
    candidates, targets = np.array([row[2] for row in tested]), np.array([row[1] for row in tested])
    found = {name: float(values.mean()) for name, values in probes.series(candidates, targets).items()}
    assert found["item_slot"] > 0.6
    assert found["slot"] < 0.45


def test_candidates_that_a_rule_cannot_tell_apart_share_the_hit(tmp_path: Path) -> None:
    write_lists(tmp_path / "examples", [("train", 0, [0, 1]), ("validation", 1, [1, 2])])
    probes = learn_probes(tmp_path / "examples", "test", tiny_catalogue(40))
    assert probes.slots.tolist() == [2, 0]
    count = tiny_catalogue(40).train_count
    equal = np.flatnonzero(count == count[-1])[:3]
    found = probes.series(np.array([equal, equal]), equal[:2])
    np.testing.assert_allclose(found["popularity"], [1 / 3, 1 / 3])
    np.testing.assert_allclose(found["item_slot"], [1 / 3, 1 / 3])  # none of them was a target


def test_parts_without_other_lists_are_passed_over_and_no_other_list_tells_nothing(tmp_path: Path) -> None:
    write_lists(tmp_path / "examples", [("train", 0, [0, 1]), ("test", 1, [1, 2])])  # a part each
    probes = learn_probes(tmp_path / "examples", "test", tiny_catalogue(5))
    assert (probes.slots.tolist(), probes.pair_counts.tolist()) == ([1, 0], [1])
    write_lists(tmp_path / "alone", [("test", 0, [0, 1]), ("test", 1, [2, 1])])
    probes = learn_probes(tmp_path / "alone", "test", tiny_catalogue(5))
    found = probes.series(np.array([[0, 1], [2, 1]]), np.array([0, 1]))
    for name in ("slot", "item_slot"):
        np.testing.assert_array_equal(found[name], [0.5, 0.5])


def test_slots_in_which_equally_many_targets_stood_share_the_hit(tmp_path: Path) -> None:
    rows = [("train", 0, [0, 1, 2]), ("train", 1, [0, 1, 2]), ("test", 2, [0, 2, 1])]
    write_lists(tmp_path / "examples", rows)
    probes = learn_probes(tmp_path / "examples", "test", tiny_catalogue(5))
    assert probes.slots.tolist() == [1, 1, 0]
    found = probes.series(np.array([[0, 2, 1], [0, 1, 2]]), np.array([2, 2]))
    np.testing.assert_array_equal(found["slot"], [0.5, 0.0])
