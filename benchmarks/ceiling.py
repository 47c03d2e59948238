"""How good the optimum of RosePO over groups would be, before anything is aligned.

That optimum is ``π ∝ π_ref · exp(w f)``: the SFT model's probabilities times a power of the oracle's (docs/method.md),
f the oracle's raw scores and w = 1 / (β τ). So titles are ranked by ``log π_ref + w f`` on the examples that a run was
evaluated on.

    python benchmarks/ceiling.py RUN                                     # the run's own oracle
    python benchmarks/ceiling.py RUN --teacher RUN --teacher OTHER_RUN   # the mean of several, normalised

A title that a search of BEAMS beams does not find counts as likely as the last one that it does find.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax

from rosepo.artifacts import Outputs
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.decode import Decoder
from rosepo.evaluation.listed import rank_batch
from rosepo.evaluation.metrics import hit_ratio, ndcg
from rosepo.evaluation.rankings import Batch, read_batches
from rosepo.evaluation.systems import EXAMPLES_FILE
from rosepo.models.folder import Recommender, load_recommender
from rosepo.models.oracle import Oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run: its examples and its SFT model")
    parser.add_argument("--teacher", type=Path, action="append", help="a run whose oracle teaches; may be repeated")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.5, 1.0, 2.0], help="w = 1 / (beta tau)")
    parser.add_argument("--beams", type=int, default=200)
    asked = parser.parse_args()
    run = Outputs(asked.run)
    catalogue = Catalogue.load(run.examples / "_items.parquet")
    batches = list(read_batches(run.evaluation / EXAMPLES_FILE, catalogue))
    targets = np.concatenate([batch.targets for batch in batches])
    policy = policy_scores(load_recommender(run.sft), batches, asked.beams, len(catalogue))
    folders = [Outputs(teacher).oracle for teacher in asked.teacher or [asked.run]]
    teachers = [oracle_scores(Oracle.load(folder, catalogue.item_ids), batches) for folder in folders]
    teacher = np.mean(teachers, axis=0)
    print(f"{len(targets):,} examples")
    for name, scores in (("SFT", policy), ("teacher", teacher)):
        show(name, scores, targets)
    for weight in asked.weights:
        show(f"SFT + {weight:g} teacher", policy + weight * teacher, targets)


def policy_scores(recommender: Recommender, batches: list[Batch], beams: int, n_items: int) -> np.ndarray:
    """log π of every item, float32 [N, n_items]; -inf for what was seen."""
    decoder = Decoder(recommender.model, recommender.builder, beams)
    found = []
    for batch in batches:
        with torch.inference_mode():
            items, scores, _ = rank_batch(recommender, decoder, batch, beams)
        worst = np.where(np.isfinite(scores), scores, np.inf).min(axis=1, keepdims=True)
        whole = np.repeat(worst, n_items, axis=1).astype(np.float32)
        rows, places = np.nonzero(items >= 0)
        whole[rows, items[rows, places]] = scores[rows, places]
        found.append(without_seen(whole, batch))
    return np.concatenate(found)


def oracle_scores(oracle: Oracle, batches: list[Batch]) -> np.ndarray:
    """log softmax of the raw scores of every item that was not seen, float32 [N, n_items]."""
    return np.concatenate(
        [log_softmax(without_seen(oracle.score_all(batch.histories), batch), axis=1) for batch in batches]
    )


def without_seen(scores: np.ndarray, batch: Batch) -> np.ndarray:
    """The same array, with -inf for what each user had chosen before."""
    for row, seen in enumerate(batch.seen):
        scores[row, seen] = -np.inf
    return scores


def show(name: str, scores: np.ndarray, targets: np.ndarray) -> None:
    """A line with HR@10 and NDCG@10; of equal scores the target comes last."""
    own = scores[np.arange(len(targets)), targets][:, None]
    ranks = (scores >= own).sum(axis=1) - 1
    print(f"{name:<20} HR@10 {hit_ratio(ranks, 10).mean():.4f}   NDCG@10 {ndcg(ranks, 10).mean():.4f}")


if __name__ == "__main__":
    main()
