"""Distillation of the oracle's whole distribution at the branchings of titles: exact at the root, unbiased below it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import logsumexp, softmax
from torch import Tensor

from rosepo.config import Config
from rosepo.data.catalogue import Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.lm.model.model_folder import CATALOGUE, load_builder
from rosepo.lm.rows.batch import Batch, collate
from rosepo.lm.rows.logps import LogpsModel
from rosepo.lm.rows.plain_rows import plain_logps
from rosepo.lm.rows.rows import group_row
from rosepo.objectives.likelihood import distill, drawn_weights
from rosepo.run.paths import RunPaths
from rosepo.training.align import align_in_process, align_task
from rosepo.training.align_task import _at_branchings
from rosepo.training.feed.feed import micro_batches
from rosepo.training.feed.trie_targets import TrieTargets
from rosepo.utils.errors import UserError
from rosepo.utils.log_shares import from_codes, to_codes
from tests.helpers import tiny_builder, tiny_model
from tests.training.tiny_run import lines, tiny_config

N, SEEN, TARGET = 7, 3, 5
OTHERS = [item for item in range(N) if item not in (SEEN, TARGET)]
SCORES = np.array([0.3, 2.0, -1.0, 9.0, 1.2, 0.4, -0.5], dtype=np.float32)
REST = float(logsumexp(SCORES[OTHERS]))
P = np.zeros(N)
P[[*OTHERS, TARGET]] = softmax(SCORES[[*OTHERS, TARGET]].astype(np.float64))


def shares() -> np.ndarray:
    """The chance of every title to be drawn, float32 [N]."""
    found = np.zeros(N, dtype=np.float32)
    found[OTHERS] = np.exp(SCORES[OTHERS] - REST)
    return found


def chance(draw: tuple[int, ...]) -> float:
    """Of drawing these titles in this order, none twice."""
    found, left = 1.0, 1.0
    for item in draw:
        found *= shares()[item] / left
        left -= shares()[item]
    return float(found)


class Estimated:
    """Losses of one group under one model, from the titles that were drawn."""

    def __init__(self, builder: PromptBuilder, family: str = "llama") -> None:
        self.builder, self.branchings = builder, TrieTargets(builder)
        self.model = LogpsModel(tiny_model(family))
        self.prompt = builder.prompt([SEEN])[0]

    def loss(self, draw: tuple[int, ...]) -> tuple[Tensor, float]:
        """What the group costs, and the least that it could."""
        titles = [TARGET, *draw]
        row = group_row(self.prompt, [self.builder.completion(item) for item in titles])
        scores, rest = SCORES[None, titles], np.array([REST], np.float32)
        made, entropy = self.branchings.add(row, len(titles), scores, rest, shares()[None])
        logps, _ = self.model(collate([made]))
        policy, others = logps[: len(titles)][None], logps[len(titles) :]
        learned = _at_branchings(policy, others)
        weights = drawn_weights(torch.from_numpy(scores), torch.from_numpy(rest))
        least = entropy[: len(titles)] + entropy[len(titles)]
        return distill(learned, weights)[0].sum(), float((weights[0].numpy() * least).sum())

    def exact(self) -> Tensor:
        """The cross-entropy over the whole catalogue, every title in a row of its own."""
        completions = [self.builder.completion(item) for item in range(N)]
        logps, _ = plain_logps(self.model.model, [self.prompt] * N, completions)
        return -(torch.from_numpy(P).float() * logps).sum()

    def gradient(self, loss: Tensor) -> Tensor:
        found = torch.autograd.grad(loss, list(self.model.parameters()))
        return torch.cat([each.flatten() for each in found])


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_mean_over_all_draws_is_the_cross_entropy_over_the_whole_catalogue(family, k):
    group = Estimated(tiny_builder(N, vocab_size=300), family)  # titles of many tokens, several with one beginning
    draws = list(itertools.permutations(OTHERS, k))
    found = [(chance(draw), *group.loss(draw)) for draw in draws]
    assert sum(p for p, *_ in found) == pytest.approx(1.0, abs=1e-5)
    mean = sum(p * loss for p, loss, _ in found)
    exact = group.exact()
    assert mean.item() == pytest.approx(exact.item(), rel=1e-5)
    one, two = group.gradient(mean), group.gradient(exact)
    assert torch.allclose(one, two, atol=1e-4 * float(two.abs().max()))
    assert sum(p * least for p, _, least in found) == pytest.approx(
        float(-(P[P > 0] * np.log(P[P > 0])).sum()), rel=1e-4
    )


def test_it_varies_less_from_draw_to_draw_than_the_drawn_titles_alone():
    group = Estimated(tiny_builder(N, vocab_size=400))
    alone, soft = [], []
    for item in OTHERS:
        completions = [group.builder.completion(title) for title in (TARGET, item)]
        with torch.no_grad():
            logps = group.model(collate([group_row(group.prompt, completions)]))[0]
            soft.append(float(group.loss((item,))[0]))
        weights = drawn_weights(torch.tensor(SCORES[None, [TARGET, item]]), torch.tensor([REST]))
        alone.append(float(distill(logps[None], weights)[0]))
    chances = [chance((item,)) for item in OTHERS]
    spreads = [np.sqrt(np.cov(found, aweights=chances, ddof=0)) for found in (soft, alone)]
    assert spreads[0] < 0.8 * spreads[1], spreads


def test_a_title_that_nothing_can_be_said_of_is_learned_as_it_is():
    group = Estimated(tiny_builder(N, vocab_size=300))
    trie = group.branchings.trie
    nothing = np.zeros(N)
    mass = group.branchings._mass(shares(), 1.0, int(group.branchings._path(group.builder.completion(TARGET))[-1]))
    path = group.branchings._path(group.builder.completion(0))
    for node, child in itertools.pairwise(path.tolist()):
        alone = group.branchings._targets(np.append(0.0, np.cumsum(nothing)), node, child)
        assert (alone.tokens.tolist(), alone.shares.tolist()) == ([trie.token[child]], [1.0])
    assert mass[-1] == pytest.approx(1.0)
    assert group.branchings._targets(mass, 0, int(path[1])).entropy == pytest.approx(0.0, abs=1e-6)


def test_groups_in_rows_of_their_own_trajectories_and_packed_lines_cost_the_same(run, tmp_path):
    other = with_shares(run, tmp_path)
    totals = []
    for options in ({"rows": "group"}, {"rows": "group", "pack_tokens": 96}, {"rows": "trajectory"}):
        task = align_task(distilling(sft_weight=0.3, **options), other)
        model = LogpsModel(task.build().model).eval()
        total = units = 0.0
        for arrays in micro_batches(task.plan, 0, 1):
            loss = task.loss(*model(Batch.from_numpy(arrays)), arrays)
            total, units = total + loss.total.item(), units + loss.units
            assert loss.sums["target_kl"][0] > 0
        totals.append(total / units)
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-5)


def test_training_comes_nearer_to_the_whole_distribution(run, tmp_path):
    other = with_shares(run, tmp_path)
    figures = align_in_process(distilling(epochs=6), other, tmp_path / "out")
    found = [line["target_kl"] for line in lines(tmp_path / "out") if "target_kl" in line]
    assert min(found) > 0
    assert sum(found[-4:]) < sum(found[:4]) - 0.2
    assert figures["validation_target_kl"] < found[0]


def test_shares_as_an_older_version_wrote_them_are_refused(run, tmp_path):
    other = with_shares(run, tmp_path)
    path = other.groups / "part-00000.parquet"
    table = pq.read_table(path)
    codes = table["oracle_shares"].combine_chunks()
    halves = pa.array(from_codes(codes.flatten().to_numpy()).astype(np.float16))
    old = pa.FixedSizeListArray.from_arrays(halves, codes.type.list_size)
    place = table.column_names.index("oracle_shares")
    pq.write_table(table.set_column(place, "oracle_shares", old), path)
    with pytest.raises(UserError, match=r"'oracle_shares' as halffloat, as an older version wrote it.*--overwrite"):
        align_task(distilling(), other)


def test_groups_without_the_column_and_models_without_shared_rows_are_refused(run, tmp_path):
    with pytest.raises(UserError, match=r"no column 'oracle_shares', .*pairs\.oracle_whole=true: run `rosepo pairs"):
        align_task(distilling(), with_shares(run, tmp_path, shares=False))
    group = Estimated(tiny_builder(N))
    group.model.model.config.model_type = "opt"
    with pytest.raises(ValueError, match="targets with weights take shared rows: model type opt"):
        group.loss((0,))


TRAIN: dict[str, Any] = {"log_every": 1, "learning_rate": 3e-3, "zero_stage": 0, "epochs": 1}


def distilling(**train: Any) -> Config:
    pairs = {"strategies": {"oracle": 1}, "oracle_whole": True}
    return tiny_config("align", loss="distill", other={"pairs": pairs}, **{**TRAIN, **train})


def with_shares(run: RunPaths, folder: Any, shares: bool = True) -> RunPaths:
    """The run with groups by an oracle that likes the next item and its neighbours; three of one user have one row."""
    other = RunPaths(folder / "other")
    other.groups.mkdir(parents=True, exist_ok=True)
    other.sft.symlink_to(run.sft)
    builder, catalogue = load_builder(run.sft), Catalogue.load(run.sft / CATALOGUE)
    rng, made = np.random.default_rng(5), []
    for row in range(24):
        user, position = divmod(row, 3)
        history = (user + np.arange(2 + position)) % len(catalogue)
        target = (history[-1] + 1) % len(catalogue)
        scores = rng.normal(size=len(catalogue)).astype(np.float32)
        scores[target] += 3.0
        can = np.setdiff1d(np.arange(len(catalogue)), [*history, target])
        rest = logsumexp(scores[can])
        whole = np.zeros(len(catalogue), dtype=np.uint16)
        whole[can] = to_codes(scores[can] - rest)
        items = [target, *rng.choice(can, 2, replace=False, p=softmax(scores[can].astype(float)))]
        ids = [builder.completion(int(item)).tolist() for item in items]
        made.append(
            {
                "example_id": f"{user}:{position}", "user_id": user, "prompt_ids": builder.prompt(history)[0].tolist(),
                "chosen_ids": ids[0], "rejected_ids": ids[1:], "strategy": ["oracle", "oracle"],
                "epsilon": [0.1, 0.1], "oracle_scores": scores[items].tolist(), "oracle_rest": float(rest),
                "oracle_shares": whole,
            }
        )  # fmt: skip
    table = pa.Table.from_pylist([{name: row[name] for name in row if name != "oracle_shares"} for row in made])
    if shares:
        values = pa.array(np.concatenate([row["oracle_shares"] for row in made]))
        column = pa.FixedSizeListArray.from_arrays(values, len(catalogue))
        table = table.append_column("oracle_shares", column)
    pq.write_table(table, other.groups / "part-00000.parquet", row_group_size=10)
    pq.write_table(table.slice(0, 8), other.groups / "_validation.parquet")
    return other
