"""`rosepo recommend`: a finished model folder and histories to the best titles, in this process or on Ray Data."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pyarrow as pa

from rosepo.config import Config, RecommendConfig
from rosepo.data.added_items import told_of, with_items
from rosepo.data.catalogue import Catalogue
from rosepo.data.histories import HistoryReader, read_histories
from rosepo.run.resources import stage_use_gpu
from rosepo.utils.console import Progress, echo, table
from rosepo.utils.errors import StageError, UserError
from rosepo.utils.quiet import quiet_worker

if TYPE_CHECKING:
    from rosepo.lm.model.model_folder import Recommender
    from rosepo.lm.titles.beam_search import Decoder


class Answerer:
    """A model in memory that answers histories; also the Ray Data actor.

    Args:
        folder: a model folder that rosepo wrote.
        settings: k and beams.
        use_gpu: put the model on a GPU.
        precision: of the model, float32 or bfloat16.
        catalogue: what it recommends from, where items were added to the folder's own; None for the folder's own.
        only_new: recommend added items alone.
    """

    def __init__(
        self,
        folder: str,
        settings: RecommendConfig,
        use_gpu: bool = False,
        precision: str = "float32",
        catalogue: Catalogue | None = None,
        only_new: bool = False,
    ) -> None:
        import torch

        from rosepo.lm.model.model_folder import load_recommender
        from rosepo.lm.serving.server import serving_of
        from rosepo.lm.titles.beam_search import Decoder

        quiet_worker()
        serving = serving_of(settings, precision, use_gpu)
        self.recommender: Recommender = load_recommender(folder, getattr(torch, precision), catalogue, serving)
        if serving is None:
            self.recommender.model.to("cuda" if use_gpu else "cpu")
        self.decoder: Decoder = Decoder(self.recommender.model, self.recommender.builder, settings.beams)
        catalogue = self.recommender.catalogue
        self.k = min(settings.k, len(catalogue))
        self.left_out = np.arange(len(catalogue) - catalogue.added if only_new else 0)

    def answer(self, histories: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        """For each history of item indexes its best items: item_id, title, score (log-probability), best first."""
        newest = [history[-self.recommender.max_history :] for history in histories]
        prompts = [self.recommender.builder.prompt(history)[0] for history in newest]
        excluded = [np.concatenate([history, self.left_out]) for history in histories]
        items, scores = self.decoder.top_k(prompts, excluded, self.k)
        catalogue = self.recommender.catalogue
        return [
            [
                {
                    "item_id": catalogue.item_ids[item : item + 1].tolist()[0],
                    "title": catalogue.titles[item],
                    "score": round(float(score), 4),
                }
                for item, score in zip(row.tolist(), row_scores.tolist())
                if item >= 0
            ]
            for row, row_scores in zip(items, scores)
        ]

    def __call__(self, work: pa.Table) -> pa.Table:
        """Column `history` (lists of item indexes) to a column `answer` of JSON texts; other columns stay."""
        histories = [np.asarray(history, dtype=np.int64) for history in work["history"].to_pylist()]
        texts = [json.dumps(answer, ensure_ascii=False) for answer in self.answer(histories)]
        return work.drop_columns(["history"]).append_column("answer", pa.array(texts, pa.string()))


def recommend(
    config: Config,
    model: str,
    history: Sequence[str],
    file: str | None,
    output: Path | None,
    as_json: bool,
    add_items: str | None = None,
    only_new: bool = False,
) -> None:
    """Answer one history of titles (or ids), or every history of a file, on stdout or into `output`.

    A file (Parquet, CSV or JSON Lines) has a column `history`: lists of titles or item ids, oldest first (in CSV a JSON
    list), and may have `user_id`, text or integers (in CSV text). Answers are JSON Lines for a file, `as_json` or
    `output`; else a table.

    Args:
        add_items: a file, folder or glob of items that came after training, which can be recommended and stand in
            histories too; see `added_items.with_items`.
        only_new: recommend those alone.

    Raises:
        UserError: no history or two sources of them, a model folder that is not one, a file that cannot be read, a
            history or user_id in it that is not one, or items that cannot be added.
    """
    if bool(history) == (file is not None):
        raise UserError("recommend needs either --history TITLE (one or more) or --file FILE, and not both")
    from rosepo.lm.model.model_folder import read_settings

    if read_settings(model)["template"].get("candidates"):
        raise UserError(
            f"{model} answers out of candidates that its prompts list (model.template.candidates=true), and recommend "
            "has a history alone: give a model whose prompts list none"
        )
    catalogue = _catalogue(config, model, add_items, only_new)
    asked: dict[str, Any] = {"catalogue": catalogue if catalogue.added else None, "only_new": only_new}
    reader = HistoryReader(catalogue)
    if file is None:
        items = reader.indexes(history, "--history")
        precision = config.precision("recommend", False)
        answer = Answerer(model, config.recommend, precision=precision, **asked).answer([items])[0]
        with _destination(output) as stream:
            if as_json or output is not None:
                stream.write(_line(None, [catalogue.titles[item] for item in items], answer))
            else:
                rows = [[place, row["title"], f"{row['score']:.2f}"] for place, row in enumerate(answer, 1)]
                stream.write(_ranked(rows, stream) + "\n")
        return
    users, histories = read_histories(file, reader)
    with _destination(output) as stream, _progress(stream, len(histories)) as progress:
        for number, answer in enumerate(_answer_on_ray(config, model, histories, asked)):
            titles = [catalogue.titles[item] for item in histories[number]]
            stream.write(_line(users[number] if users is not None else None, titles, answer))
            if progress is not None:
                progress.update()


def _catalogue(config: Config, model: str, add_items: str | None, only_new: bool) -> Catalogue:
    """What a model recommends from: the items of its folder, and behind them those that are added."""
    from rosepo.lm.model.added_titles import check_added, unknown_told
    from rosepo.lm.model.model_folder import CATALOGUE

    own = Catalogue.load(Path(model) / CATALOGUE)
    if add_items is None and only_new:
        raise UserError("--only-new recommends what --add-items adds: give that too")
    if add_items is None:
        return own
    catalogue, counts = with_items(own, config, add_items, "--add-items")
    echo(f"  {told_of(counts, add_items)}")
    if only_new and not catalogue.added:
        raise UserError(f"--only-new: {model} knows every item of --add-items {add_items}, so that none is new")
    unknown = check_added(model, catalogue) if catalogue.added else 0
    if unknown:
        echo(f"  {unknown_told(unknown, catalogue.added)}")
    return catalogue


def _progress(stream: TextIO, total: int) -> AbstractContextManager[Progress | None]:
    """None where the answers come on a terminal: they are progress enough."""
    return nullcontext() if stream.isatty() else Progress("recommend", total, "answers")


def _answer_on_ray(
    config: Config, model: str, histories: list[np.ndarray], asked: dict[str, Any]
) -> Iterator[list[dict[str, Any]]]:
    """Answers in the order of the histories; batches are fixed, so that the number of actors changes nothing.

    Args:
        asked: further arguments of `Answerer`.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    from rosepo.run.ray_session import ray_session

    settings = config.recommend
    with ray_session(config.ray):
        use_gpu = stage_use_gpu(config, "recommend")
        size = settings.batch_size
        kind = pa.list_(pa.int64())
        blocks = [
            pa.table({"history": pa.array([part.tolist() for part in histories[start : start + size]], kind)})
            for start in range(0, len(histories), size)
        ]
        dataset = ray.data.from_arrow(blocks)
        dataset.context.execution_options.preserve_order = True
        answered = dataset.map_batches(
            Answerer,
            fn_constructor_kwargs={
                "folder": str(Path(model).resolve()),
                "settings": settings,
                "use_gpu": use_gpu,
                "precision": config.precision("recommend", use_gpu),
                **asked,
            },
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(settings.actors, len(blocks))),
            num_cpus=settings.cpus_per_actor,
            num_gpus=settings.gpus_per_actor if use_gpu else None,
        )
        try:
            rows: Any
            for rows in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from (json.loads(text) for text in rows["answer"].to_pylist())
        except ray.exceptions.RayError as error:
            raise StageError(f"recommending failed: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def _destination(output: Path | None) -> Iterator[TextIO]:
    """Stdout, or a file that takes its name only when it is whole."""
    if output is None:
        yield sys.stdout
        return
    aside = output.with_name(f".{output.name}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as stream:
            yield stream
        aside.replace(output)
    except FileNotFoundError:
        raise UserError(f"--output {output}: its folder does not exist") from None
    finally:
        aside.unlink(missing_ok=True)


def _line(user: Any, history: Iterable[str], answer: list[dict[str, Any]]) -> str:
    record = ({"user_id": user} if user is not None else {}) | {"history": list(history), "recommendations": answer}
    return json.dumps(record, ensure_ascii=False) + "\n"


def _ranked(rows: list[list[Any]], stream: TextIO) -> str:
    # The title is the column to be read from the left, so it comes first.
    return table(
        [[f"{place:>2}  {title}", score] for place, title, score in rows],
        header=(" #  title", "log-probability"),
        stream=stream,
    )
