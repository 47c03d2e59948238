"""How good the optimum of RosePO over groups would be, and how far an aligned model is from it.

That optimum is ``π ∝ π_ref · exp(w f)``: the SFT model's probabilities times a power of the oracle's (docs/method.md),
f the oracle's raw scores and w = 1 / (β τ). So titles are ranked by ``log π_ref + w f`` on the examples that a run was
evaluated on. Three more figures tell how near the run's aligned model π is to it, over the first ten titles of the
optimum: how many of them are among π's own first ten, and slope and correlation of ``log π − log π_ref`` on f, each
about its mean over the ten; 100 %, w and 1 at the optimum.

    python benchmarks/ceiling.py RUN                                     # the run's own oracle
    python benchmarks/ceiling.py RUN --teacher RUN --teacher OTHER_RUN   # the mean of several, normalised

A title that a search of BEAMS beams does not find counts as likely as the last one that it does find. Whole catalogue
alone, and oracles that rosepo trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, Batch, read_batches
from rosepo.evaluation.rankers import rank_batch
from rosepo.lm.model.model_folder import Recommender, load_recommender
from rosepo.lm.titles.beam_search import Decoder
from rosepo.metrics.ranking import hit_ratio, ndcg
from rosepo.oracle.crossfit import Oracle
from rosepo.run.paths import RunPaths
from rosepo.utils.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run: its examples and its SFT model")
    parser.add_argument("--teacher", type=Path, action="append", help="a run whose oracle teaches; may be repeated")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="w = 1 / (beta tau)")
    parser.add_argument("--beams", type=int, default=200)
    asked = parser.parse_args()
    try:
        found, nearness = ceiling(asked.run, asked.teacher or [asked.run], asked.weights, asked.beams)
    except UserError as error:
        parser.error(str(error))
    print(f"{len(next(iter(found.values()))):,} examples")
    for name, ranks in found.items():
        print(f"{name:<20} HR@10 {hit_ratio(ranks, 10).mean():.4f}   NDCG@10 {ndcg(ranks, 10).mean():.4f}", end="")
        print(f"   aligned: {nearness[name]}" if name in nearness else "")


def ceiling(
    run: Path, teachers: Sequence[Path], weights: Sequence[float], beams: int
) -> tuple[dict[str, np.ndarray], dict[str, Nearness]]:
    """Ranks of the targets, int64 [N], by `SFT`, by the `aligned` model if there is one, by the `teacher`, and by their
    products; and how near the aligned model is to each product.

    Raises:
        UserError: a run that is not finished, or without what is read here.
    """
    of_run = RunPaths(run)
    if not (of_run.evaluation / EXAMPLES_FILE).exists():
        raise UserError(f"{run} holds no evaluation: run `rosepo evaluate` first")
    catalogue = Catalogue.load(of_run.examples / "_items.parquet")
    oracles = [Oracle.load(RunPaths(teacher).oracle, catalogue.item_ids) for teacher in teachers]
    folders = {"SFT": of_run.sft} | ({"aligned": of_run.aligned} if of_run.aligned.exists() else {})
    models = {name: load_recommender(folder) for name, folder in folders.items()}
    decoders = {name: Decoder(model.model, model.builder, beams) for name, model in models.items()}
    found: dict[str, list[np.ndarray]] = {}
    nearness: dict[str, Nearness] = {}
    for batch in read_batches(of_run.evaluation / EXAMPLES_FILE):
        if batch.candidates is not None:
            raise UserError(f"{run} ranks lists of candidates, not the whole catalogue")
        scores = {name: policy_scores(models[name], decoders[name], batch, len(catalogue)) for name in models}
        policy, aligned = scores["SFT"], scores.get("aligned")
        teacher = np.mean([oracle_scores(oracle, batch) for oracle in oracles], axis=0)
        scores["teacher"] = teacher
        for weight in weights:
            name = f"SFT + {weight:g} teacher"
            scores[name] = policy + weight * teacher
            if aligned is not None:
                nearness.setdefault(name, Nearness()).add(scores[name], aligned, policy, teacher)
        for name, values in scores.items():
            found.setdefault(name, []).append(ranks_in(values, batch.targets))
    return {name: np.concatenate(ranks) for name, ranks in found.items()}, nearness


@dataclass
class Nearness:
    """Sums over examples; see the head of this file."""

    shared: int = 0
    examples: int = 0
    moments: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def add(self, optimum: np.ndarray, aligned: np.ndarray, policy: np.ndarray, teacher: np.ndarray) -> None:
        """Count in scores [B, n_items]; -inf for what was seen."""
        first, own = (np.argsort(-scores, axis=1, kind="stable")[:, :10] for scores in (optimum, aligned))
        self.shared += int((first[:, :, None] == own[:, None, :]).sum())
        self.examples += len(first)
        aligned, policy, wanted = (np.take_along_axis(scores, first, 1) for scores in (aligned, policy, teacher))
        moved, wanted = (values - values.mean(axis=1, keepdims=True) for values in (aligned - policy, wanted))
        self.moments += [(moved * wanted).sum(), (wanted * wanted).sum(), (moved * moved).sum()]

    def __str__(self) -> str:
        both, wanted, moved = self.moments
        return (
            f"{self.shared / self.examples / 10:.0%} of the first ten, slope {both / wanted:.2f}, "
            f"correlation {both / np.sqrt(wanted * moved):.2f}"
        )


def policy_scores(recommender: Recommender, decoder: Decoder, batch: Batch, n_items: int) -> np.ndarray:
    """log π of every item, float32 [B, n_items]; -inf for what was seen."""
    with torch.inference_mode():
        items, scores, _ = rank_batch(recommender, decoder, batch, decoder.beams)
    worst = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
    whole = np.repeat(worst, n_items, axis=1).astype(np.float32)
    rows, places = np.nonzero(items >= 0)
    whole[rows, items[rows, places]] = scores[rows, places]
    return without_seen(whole, batch)


def oracle_scores(oracle: Oracle, batch: Batch) -> np.ndarray:
    """log softmax of the raw scores of every item that was not seen, float32 [B, n_items]; -inf for the others."""
    normalised: np.ndarray = log_softmax(without_seen(oracle.score_all(batch.histories), batch), axis=1)
    return normalised


def without_seen(scores: np.ndarray, batch: Batch) -> np.ndarray:
    """The same array, with -inf for what each user had chosen before."""
    for row, seen in enumerate(batch.seen):
        scores[row, seen] = -np.inf
    return scores


def ranks_in(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Where each target stands by scores [B, n_items], int64 [B], 0 first; of equal scores it comes last."""
    own = scores[np.arange(len(targets)), targets][:, None]
    return (scores >= own).sum(axis=1).astype(np.int64) - 1


if __name__ == "__main__":
    main()
