"""Who ranks: one kind of Ray Data actor, for baselines that score the whole catalogue and for language models.

Actors write the part files of the rankings themselves; what comes back is how many examples a part had. PyTorch is
imported with the first system that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rosepo.config import ModelConfig
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.baselines import BatchScores, baseline, top_k
from rosepo.evaluation.measured_examples import Batch, Part, part_batches
from rosepo.evaluation.rankings import DEPTH, rankings_table, write_part
from rosepo.lm.titles.candidate_scores import best_candidates, candidate_logps
from rosepo.utils.quiet import quiet_worker

if TYPE_CHECKING:
    from rosepo.lm.model.model_folder import Recommender
    from rosepo.lm.serving.server import Serving
    from rosepo.lm.titles.beam_search import Decoder

Answer = Callable[[Batch], pa.Table]
"""Of a system that is loaded, the rows of its part files for a batch."""
Answering = Callable[["Recommender", int], Answer]
"""Of a model that is loaded and a number of beams, what answers a batch: `ranking`, or free answers."""


@dataclass(frozen=True)
class RankerSettings:
    """What an actor needs to know.

    Attributes:
        prompts: of the run: what models that rosepo did not train read.
        max_history: newest items that they read.
        beams: of the search.
        models: language models, name to folder or hub id; systems of other names are baselines.
        examples: file that `write_examples` wrote.
        catalogue: file of the run's items.
        transitions, oracle: what baselines rank by, see `baseline`.
        out: folder of the folders of rankings.
        device: `cpu` or `cuda`, of models and of the oracle where no server needs it.
        precision: of the models, float32 or bfloat16.
        serving: how vLLM serves the models; None loads them into the actor.
        answering: what is asked of a model.
    """

    prompts: ModelConfig
    max_history: int
    beams: int
    models: dict[str, str]
    examples: Path
    catalogue: Path
    transitions: Path
    oracle: Path
    out: Path
    device: str
    precision: str
    serving: Serving | None
    answering: Answering


class Ranker:
    """The Ray Data actor: names of systems and parts in, part files out. Holds one system at a time."""

    def __init__(self, settings: RankerSettings) -> None:
        quiet_worker()
        self.settings = settings
        self.catalogue = Catalogue.load(settings.catalogue)
        self.held = ""
        self.answer: Answer | None = None
        self.end: Callable[[], None] = _nothing

    def __call__(self, work: pa.Table) -> dict[str, list[Any]]:
        """Column `system` and those of `Part`: one part file a row is written; columns `system`, `rows`, its examples,
        and `seconds`, how long that took with the system there."""
        answers: dict[str, list[Any]] = {"system": [], "rows": [], "seconds": []}
        for row in work.to_pylist():
            name = row.pop("system")
            part = Part(**row)
            answer = self._answer_of(name)
            started = time.monotonic()
            rank_part(answer, self.settings.examples, part, self.settings.out / f"{name}.parquet")
            answers["system"].append(name)
            answers["rows"].append(part.rows)
            answers["seconds"].append(time.monotonic() - started)
        return answers

    def _answer_of(self, name: str) -> Answer:
        if name != self.held or self.answer is None:
            self.answer = None  # or both would lie in memory while the next one is loaded
            self.end()
            self.end = _nothing
            self.answer, self.held = self._model(name) if name in self.settings.models else self._baseline(name), name
        return self.answer

    def _model(self, name: str) -> Answer:
        from rosepo.evaluation.external_models import load_external

        settings = self.settings
        path, longest = settings.models[name], settings.max_history
        serving, precision = settings.serving, settings.precision
        recommender = load_external(path, self.catalogue, settings.prompts, longest, precision, serving)
        if serving is None:
            recommender.model.to(settings.device)
        else:
            self.end = recommender.model.close
        return settings.answering(recommender, settings.beams)

    def _baseline(self, name: str) -> Answer:
        settings = self.settings
        device = settings.device if settings.serving is None else "cpu"  # a server that comes next takes the GPU
        return by_scores(baseline(name, self.catalogue, settings.transitions, settings.oracle, device))


def _nothing() -> None:
    """What ends a system that is in this process."""


def rank_part(answer: Answer, examples: Path, part: Part, out: Path) -> None:
    """Answer the batches of a part and write its file into the folder `out`."""
    write_part(out, part, [answer(batch) for batch in part_batches(examples, part)])


def by_scores(score: BatchScores) -> Answer:
    """Rankings of a batch by scores: of its candidates where it has them, else of all items that were not seen."""

    def answer(batch: Batch) -> pa.Table:
        scores = restricted(score(batch), batch.candidates)
        return rankings_table(batch, *top_k(scores, batch.seen, DEPTH))

    return answer


def ranking(recommender: Recommender, beams: int) -> Answer:
    """A model's rankings of a batch, and `left_out`, the items of each history that did not fit in the prompt."""
    from rosepo.lm.titles.beam_search import Decoder

    decoder = Decoder(recommender.model, recommender.builder, beams)

    def answer(batch: Batch) -> pa.Table:
        items, scores, left_out = rank_batch(recommender, decoder, batch, DEPTH)
        table = rankings_table(batch, items, scores)
        return table.append_column("left_out", pa.array(left_out, pa.int32()))

    return answer


def rank_batch(
    recommender: Recommender, decoder: Decoder, batch: Batch, k: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """A model's `k` best items for each example: of its candidates where the batch has them, else of the catalogue.

    Args:
        decoder: searches the catalogue, on the recommender's model.

    Returns:
        Item indexes int64 [B, k] padded with -1, scores float32 [B, k] padded with -inf, and how many of its oldest
        items each history had no room for.

    Raises:
        UserError: the model's prompts list candidates, and the batch has none.
    """
    from rosepo.lm.rows.logps import LogpsModel

    builder = recommender.builder
    newest = [history[-recommender.max_history :] for history in batch.histories]
    prompts, left_out = builder.prompts(newest, batch.candidates)
    if batch.candidates is None:
        return *decoder.top_k(prompts, batch.seen, k), left_out
    scores = candidate_logps(LogpsModel(recommender.model, float32_logits=True), builder, prompts, batch.candidates)
    return *best_candidates(batch.candidates, scores, np.ones(scores.shape, dtype=bool), k), left_out


def restricted(scores: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
    """Scores float [N, n_items] of the catalogue, -inf outside the candidates int64 [N, C]; None lets all compete."""
    if candidates is None:
        return scores
    kept = np.full(scores.shape, -np.inf)
    np.put_along_axis(kept, candidates, np.take_along_axis(scores, candidates, axis=1), axis=1)
    return kept
