"""`rosepo recommend`: a finished model folder and histories to the best titles, in this process or on Ray Data."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pyarrow as pa

from rosepo.config import Config, RecommendConfig
from rosepo.console import Progress, table
from rosepo.data.catalogue import Catalogue
from rosepo.data.titles import normalised
from rosepo.errors import StageError, UserError
from rosepo.resources import stage_use_gpu

if TYPE_CHECKING:
    from rosepo.evaluation.decode import Decoder
    from rosepo.models.folder import Recommender


class HistoryReader:
    """Item ids or titles, as a person writes them, to item indexes.

    Titles match after normalisation. An entry that is both an id and a title is taken as the id.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._titles = {normalised(title): index for index, title in enumerate(catalogue.titles)}
        self._ids = {str(item): index for index, item in enumerate(catalogue.item_ids.tolist())}
        self._catalogue = catalogue

    def indexes(self, entries: Sequence[Any], where: str) -> np.ndarray:
        """Item indexes int64 of ids or titles, oldest first.

        Raises:
            UserError: an entry that is neither, naming `where` it stands and the nearest titles.
        """
        return np.array([self._index(entry, where) for entry in entries], dtype=np.int64)

    def _index(self, entry: Any, where: str) -> int:
        text = str(entry).strip()
        found = self._ids.get(text, self._titles.get(normalised(text)))
        if found is None:
            near = difflib.get_close_matches(normalised(text), self._titles, n=3, cutoff=0.5)
            titles = ", ".join(repr(self._catalogue.titles[self._titles[name]]) for name in near)
            hint = f"the nearest titles are {titles}" if near else "no title comes near it"
            raise UserError(f"{where}: {text!r} is neither a title nor an item id of the model's catalogue; {hint}")
        return found


class Answerer:
    """A model in memory that answers histories; also the Ray Data actor.

    Args:
        folder: a model folder that rosepo wrote.
        settings: k and beams.
        use_gpu: put the model on a GPU.
    """

    def __init__(self, folder: str, settings: RecommendConfig, use_gpu: bool = False) -> None:
        from rosepo.evaluation.decode import Decoder
        from rosepo.models.folder import load_recommender

        self.recommender: Recommender = load_recommender(folder)
        self.recommender.model.to("cuda" if use_gpu else "cpu")
        self.decoder: Decoder = Decoder(self.recommender.model, self.recommender.builder, settings.beams)
        self.k = min(settings.k, len(self.recommender.catalogue))

    def answer(self, histories: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        """For each history of item indexes its best items: item_id, title, score (log-probability), best first."""
        newest = [history[-self.recommender.max_history :] for history in histories]
        prompts = [self.recommender.builder.prompt(history)[0] for history in newest]
        items, scores = self.decoder.top_k(prompts, histories, self.k)
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
    config: Config, model: str, history: Sequence[str], file: str | None, output: Path | None, as_json: bool
) -> None:
    """Answer one history of titles (or ids), or every history of a file, on stdout or into `output`.

    A file (Parquet, CSV or JSON Lines) has a column `history`: lists of titles or item ids, oldest first (in CSV a JSON
    list), and may have `user_id`. Answers are JSON Lines for a file, `as_json` or `output`; else a table.

    Raises:
        UserError: no history or two sources of them, a model folder that is not one, a file that cannot be read, or an
            unknown title.
    """
    if bool(history) == (file is not None):
        raise UserError("recommend needs either --history TITLE (one or more) or --file FILE, and not both")
    from rosepo.models.folder import CATALOGUE, read_settings

    read_settings(model)
    catalogue = Catalogue.load(Path(model) / CATALOGUE)
    reader = HistoryReader(catalogue)
    if file is None:
        items = reader.indexes(history, "--history")
        answer = Answerer(model, config.recommend).answer([items])[0]
        with _destination(output) as stream:
            if as_json or output is not None:
                stream.write(_line(None, [catalogue.titles[item] for item in items], answer))
            else:
                rows = [[place, row["title"], f"{row['score']:.2f}"] for place, row in enumerate(answer, 1)]
                stream.write(_ranked(rows) + "\n")
        return
    users, histories = read_histories(file, reader)
    with _destination(output) as stream:
        for number, answer in enumerate(_answer_on_ray(config, model, histories)):
            titles = [catalogue.titles[item] for item in histories[number]]
            stream.write(_line(users[number] if users is not None else None, titles, answer))


def read_histories(file: str, reader: HistoryReader) -> tuple[list[Any] | None, list[np.ndarray]]:
    """`user_id` of every row (None without that column) and the histories as item indexes.

    Raises:
        UserError: no such file, a kind that is not read, no column `history`, no row, or (naming the row) an unknown
            title.
    """
    rows = _read_table(Path(file))
    if "history" not in rows.column_names:
        raise UserError(f"{file} has no column 'history' (it has {', '.join(rows.column_names)})")
    if not len(rows):
        raise UserError(f"{file} holds no rows")
    histories = []
    for number, entries in enumerate(rows["history"].to_pylist(), 1):
        where = f"{file}, row {number}"
        histories.append(reader.indexes(_entries(entries, where), where))
    return (rows["user_id"].to_pylist() if "user_id" in rows.column_names else None), histories


def _entries(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise UserError(f'{where}: history {value!r} is not a JSON list such as ["Title A", "Title B"]') from None
    if not isinstance(value, list) or any(entry is None for entry in value):
        raise UserError(f"{where}: history {value!r} is not a list of titles or item ids")
    return value


def _read_table(path: Path) -> pa.Table:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".csv": pyarrow.csv.read_csv,
        ".jsonl": pyarrow.json.read_json,
        ".json": pyarrow.json.read_json,
        ".ndjson": pyarrow.json.read_json,
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"--file {path}: give a .parquet, .csv or .jsonl file")
    try:
        return readers[path.suffix.lower()](str(path))
    except FileNotFoundError:
        raise UserError(f"--file {path} does not exist") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"--file {path} cannot be read: {error}") from error


def _answer_on_ray(config: Config, model: str, histories: list[np.ndarray]) -> Iterator[list[dict[str, Any]]]:
    """Answers in the order of the histories; batches are fixed, so that the number of actors changes nothing."""
    import ray.data
    from ray.data import ActorPoolStrategy

    from rosepo.session import ray_session

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
            fn_constructor_kwargs={"folder": str(Path(model).resolve()), "settings": settings, "use_gpu": use_gpu},
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=min(settings.actors, len(blocks))),
            num_cpus=settings.cpus_per_actor,
            num_gpus=1 if use_gpu else None,
        )
        try:
            with Progress("recommend", len(histories), "histories") as progress:
                rows: Any
                for rows in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
                    yield from (json.loads(text) for text in rows["answer"].to_pylist())
                    progress.update(len(rows))
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


def _ranked(rows: list[list[Any]]) -> str:
    # The title is the column to be read from the left, so it comes first.
    return table(
        [[f"{place:>2}  {title}", score] for place, title, score in rows], header=(" #  title", "log-probability")
    )
