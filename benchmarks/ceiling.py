"""How good the optimum of RosePO over groups would be, before anything is aligned.

That optimum is ``π ∝ π_ref · exp(w f)``: the SFT model's probabilities times a power of the oracle's (docs/method.md),
f the oracle's raw scores and w = 1 / (β τ). So titles are ranked by ``log π_ref + w f`` on the examples that a run was
evaluated on.

    python benchmarks/ceiling.py RUN                                     # the run's own oracle
    python benchmarks/ceiling.py RUN --teacher RUN --teacher OTHER_RUN   # the mean of several, normalised

A title that a search of BEAMS beams does not find counts as likely as the last one that it does find. Whole catalogue
alone, and oracles that rosepo trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax

from rosepo.artifacts import Outputs
from rosepo.data.catalogue import Catalogue
from rosepo.errors import UserError
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
    try:
        found = ceiling(asked.run, asked.teacher or [asked.run], asked.weights, asked.beams)
    except UserError as error:
        parser.error(str(error))
    print(f"{len(next(iter(found.values()))):,} examples")
    for name, ranks in found.items():
        print(f"{name:<20} HR@10 {hit_ratio(ranks, 10).mean():.4f}   NDCG@10 {ndcg(ranks, 10).mean():.4f}")


def ceiling(run: Path, teachers: Sequence[Path], weights: Sequence[float], beams: int) -> dict[str, np.ndarray]:
    """Ranks of the targets, int64 [N], by `SFT`, by the `teacher`, and by their products.

    Raises:
        UserError: a run that is not finished, or without what is read here.
    """
    of_run = Outputs(run)
    if not (of_run.evaluation / EXAMPLES_FILE).exists():
        raise UserError(f"{run} holds no evaluation: run `rosepo evaluate` first")
    catalogue = Catalogue.load(of_run.examples / "_items.parquet")
    oracles = [Oracle.load(Outputs(teacher).oracle, catalogue.item_ids) for teacher in teachers]
    recommender = load_recommender(of_run.sft)
    decoder = Decoder(recommender.model, recommender.builder, beams)
    found: dict[str, list[np.ndarray]] = {}
    for batch in read_batches(of_run.evaluation / EXAMPLES_FILE, catalogue):
        if batch.candidates is not None:
            raise UserError(f"{run} ranks lists of candidates, not the whole catalogue")
        policy = policy_scores(recommender, decoder, batch, len(catalogue))
        teacher = np.mean([oracle_scores(oracle, batch) for oracle in oracles], axis=0)
        scores = {"SFT": policy, "teacher": teacher}
        scores |= {f"SFT + {weight:g} teacher": policy + weight * teacher for weight in weights}
        for name, values in scores.items():
            found.setdefault(name, []).append(ranks_in(values, batch.targets))
    return {name: np.concatenate(ranks) for name, ranks in found.items()}


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
