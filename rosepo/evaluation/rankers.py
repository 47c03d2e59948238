"""Who ranks: scorers of the whole catalogue in this process, language models on Ray Data actors.

Both write the part files of their rankings themselves; what comes back is how many examples a part had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from rosepo.config import ModelConfig
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.baselines import top_k
from rosepo.evaluation.measured_examples import Batch, Part, part_batches
from rosepo.evaluation.rankings import DEPTH, rankings_table, write_part
from rosepo.lm.titles.candidate_scores import best_candidates, candidate_logps
from rosepo.run.ray_session import answers_of_actors
from rosepo.run.shard_files import lost_actor
from rosepo.utils.console import Progress
from rosepo.utils.errors import user_error_from
from rosepo.utils.quiet import quiet_worker

if TYPE_CHECKING:
    from rosepo.lm.model.model_folder import Recommender
    from rosepo.lm.titles.beam_search import Decoder


def rank_by_batches(
    score: Callable[[Batch], np.ndarray],
    examples: Path,
    out: Path,
    progress: Progress,
    parts: Sequence[Part],
) -> None:
    """Rank all that was not seen, in this process, and write part files into the folder `out`.

    Args:
        score: a batch to its scores of the whole catalogue, float [B, n_items].
        parts: those to make.
    """
    out.mkdir(exist_ok=True)
    for part in parts:
        tables = []
        for batch in part_batches(examples, part):
            scores = restricted(score(batch), batch.candidates)
            tables.append(rankings_table(batch, *top_k(scores, batch.seen, DEPTH)))
            progress.update(len(batch.targets))
        write_part(out, part, tables)


@dataclass(frozen=True)
class RankerSettings:
    """What an actor needs to know.

    Attributes:
        models: name to folder or hub id.
        examples: file that `write_examples` wrote.
        catalogue: file of the run's items.
        out: folder of the folders of rankings.
        beams: of the constrained search.
        device: `cpu` or `cuda`.
        prompts, max_history: template and lengths of models that rosepo did not train.
    """

    models: dict[str, str]
    examples: Path
    catalogue: Path
    out: Path
    beams: int
    device: str
    prompts: ModelConfig
    max_history: int


class LanguageModelRanker:
    """The Ray Data actor: names of models and parts in, part files out. Holds one model at a time."""

    def __init__(self, settings: RankerSettings) -> None:
        quiet_worker()
        self.settings = settings
        self.catalogue = Catalogue.load(settings.catalogue)
        self.held = ""

    def __call__(self, work: pa.Table) -> dict[str, list[int]]:
        """Column `model` and those of `Part`: one part file a row is written; column `rows`, its examples."""
        answers: dict[str, list[int]] = {"rows": []}
        for row in work.to_pylist():
            name = row.pop("model")
            part = Part(**row)
            self._hold(name)
            batches = part_batches(self.settings.examples, part)
            write_part(self.settings.out / f"{name}.parquet", part, [self.rank(batch) for batch in batches])
            answers["rows"].append(part.rows)
        return answers

    def rank(self, batch: Batch) -> pa.Table:
        """The rankings of a batch, and `left_out`, the items of each history that did not fit in the prompt."""
        items, scores, left_out = rank_batch(self.recommender, self.decoder, batch, DEPTH)
        table = rankings_table(batch, items, scores)
        return table.append_column("left_out", pa.array(left_out, pa.int32()))

    def _hold(self, name: str) -> None:
        if name == self.held:
            return
        from rosepo.evaluation.external_models import load_external

        self.release()  # or both would lie in memory while the next one is loaded
        settings = self.settings
        self.recommender = load_external(settings.models[name], self.catalogue, settings.prompts, settings.max_history)
        self.recommender.model.to(settings.device)
        self.prepare()
        self.held = name

    def prepare(self) -> None:
        """Make what the model that is held works with."""
        from rosepo.lm.titles.beam_search import Decoder

        self.decoder = Decoder(self.recommender.model, self.recommender.builder, self.settings.beams)

    def release(self) -> None:
        """Let go of the model that is held, and of what works with it."""
        for name in ("recommender", "decoder"):
            self.__dict__.pop(name, None)
        self.held = ""


def rank_by_models(
    work: Sequence[tuple[str, Part]],
    settings: RankerSettings,
    actor: type[LanguageModelRanker] = LanguageModelRanker,
    *,
    actors: int,
    cpus_per_actor: float,
    total: int,
    on_rows: Callable[[int], None],
) -> None:
    """Rank by language models on Ray Data actors, which write the part files.

    Args:
        work: names of models and the parts to make, those of one model behind one another.
        total: parts of all models, finished ones included.
        on_rows: is told how many examples a finished part had.

    Raises:
        UserError: a model that cannot be loaded.
        StageError: an actor failed for good; the parts that are finished stay.
    """
    rows = [{"model": name, **asdict(part)} for name, part in work]
    use_gpu = settings.device == "cuda"
    try:
        done: Iterator[dict[str, Any]] = answers_of_actors(
            rows, actor, settings, actors=actors, cpus_per_actor=cpus_per_actor, use_gpu=use_gpu
        )
        for answer in done:
            on_rows(answer["rows"])
    except Exception as error:
        left = sum(not (settings.out / f"{name}.parquet" / part.name).exists() for name, part in work)
        raise user_error_from(error) or lost_actor(
            error, "a ranking actor", total - left, total, "evaluate.actors"
        ) from error


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
    scores = candidate_logps(LogpsModel(recommender.model), builder, prompts, batch.candidates)
    return *best_candidates(batch.candidates, scores, np.ones(scores.shape, dtype=bool), k), left_out


def restricted(scores: np.ndarray, candidates: np.ndarray | None) -> np.ndarray:
    """Scores float [N, n_items] of the catalogue, -inf outside the candidates int64 [N, C]; None lets all compete."""
    if candidates is None:
        return scores
    kept = np.full(scores.shape, -np.inf)
    np.put_along_axis(kept, candidates, np.take_along_axis(scores, candidates, axis=1), axis=1)
    return kept
