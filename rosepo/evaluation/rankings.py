"""Rankings on disk: the examples that are measured, and the twenty best items of every model for each of them.

Examples are written once, a batch a row group. Batches are thereby fixed by the data, and a ranking does not depend on
how many actors share the work. Rankings are Parquet too, so that every figure can be computed again from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rosepo.console import Progress
from rosepo.data.catalogue import Catalogue
from rosepo.data.seen import read_split
from rosepo.errors import StageError, UserError
from rosepo.evaluation.baselines import top_k
from rosepo.evaluation.listed import rank_batch, restricted
from rosepo.evaluation.metrics import target_ranks
from rosepo.session import work_dataset

DEPTH = 20
"""Places of a ranking that are kept."""


@dataclass(frozen=True)
class Batch:
    """Examples of one row group, items as indexes, lists oldest first; a history is the end of what was `seen`. Where
    there are candidates, int64 [B, C], nothing else competes."""

    example_ids: list[str]
    users: pa.Array
    histories: list[np.ndarray]
    seen: list[np.ndarray]
    targets: np.ndarray
    candidates: np.ndarray | None = None

    @classmethod
    def of(cls, table: pa.Table, catalogue: Catalogue) -> Batch:
        """From columns example_id, user_id, history, seen, target, and candidates where the table has them."""
        return cls(
            table["example_id"].to_pylist(),
            table["user_id"].combine_chunks(),
            catalogue.index_lists(table["history"]),
            catalogue.index_lists(table["seen"]),
            catalogue.index(table["target"].to_numpy()),
            catalogue.index_matrix(table["candidates"]) if "candidates" in table.column_names else None,
        )


def write_examples(
    folder: Path, split: str, limit: int | None, batch_size: int, out: Path, extra: tuple[str, ...] = ()
) -> int:
    """Copy the examples of a split into the file `out`, `batch_size` a row group, in order; return their number.

    Args:
        limit: keep this many, those with the smallest hash of example_id.
        extra: columns that are kept too.

    Raises:
        UserError: the split is empty.
    """
    count, waiting = 0, pa.table({})
    writer: pq.ParquetWriter | None = None
    try:
        for table in read_split(folder, split, limit, extra):
            count += len(table)
            waiting = pa.concat_tables([waiting, table]) if len(waiting) else table
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
            whole = len(waiting) // batch_size * batch_size
            if whole:
                writer.write_table(waiting.slice(0, whole), row_group_size=batch_size)
                waiting = waiting.slice(whole)
        if writer is not None and len(waiting):
            writer.write_table(waiting)
    finally:
        if writer is not None:
            writer.close()
    if not count:
        raise UserError(f"{folder} has no {split} examples to evaluate: choose another evaluate.split")
    return count


def read_batches(examples: Path, catalogue: Catalogue, row_groups: Sequence[int] | None = None) -> Iterator[Batch]:
    """The examples batch by batch, as `write_examples` cut them."""
    file = pq.ParquetFile(examples)
    for group in range(file.num_row_groups) if row_groups is None else row_groups:
        yield Batch.of(file.read_row_group(group), catalogue)


def rankings_table(batch: Batch, catalogue: Catalogue, items: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Rankings as a table: example_id, user_id, target, rank (0 is first, -1 absent), items and scores, best first.

    Args:
        items: item indexes int64 [B, k], padded with -1.
        scores: float32 [B, k].
    """
    found = items >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(found.sum(1))]).astype(np.int32))
    kind = pa.int64() if catalogue.item_ids.dtype.kind == "i" else pa.string()
    return pa.table(
        {
            "example_id": pa.array(batch.example_ids, pa.string()),
            "user_id": batch.users,
            "target": pa.array(catalogue.item_ids[batch.targets], kind),
            "rank": pa.array(target_ranks(items, batch.targets).astype(np.int32)),
            "items": pa.ListArray.from_arrays(offsets, pa.array(catalogue.item_ids[items[found]], kind)),
            "scores": pa.ListArray.from_arrays(offsets, pa.array(scores[found].astype(np.float32))),
        }
    )


def read_rankings(path: Path, catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """Ranks int64 [N] and item indexes int64 [N, DEPTH] padded with -1, of a file that `RankingWriter` closed."""
    table = pq.read_table(path, columns=["rank", "items"])
    lists = table["items"].combine_chunks()
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    items = np.full((len(table), DEPTH), -1, dtype=np.int64)
    items[np.arange(DEPTH) < lengths[:, None]] = catalogue.index(lists.flatten().to_numpy(zero_copy_only=False))
    return table["rank"].to_numpy().astype(np.int64), items


def count_cut(path: Path) -> dict[str, int]:
    """Prompts of a model's rankings that did not hold their whole history, and the items that they left out."""
    left_out = pq.read_table(path, columns=["left_out"])["left_out"].to_numpy()
    return {"prompts": int((left_out > 0).sum()), "items": int(left_out.sum())}


def rank_by_batches(
    score: Callable[[Batch], np.ndarray], examples: Path, catalogue: Catalogue, out: Path, progress: Progress
) -> None:
    """Rank all that was not seen, in this process, and write the file `out`.

    Args:
        score: a batch to its scores of the whole catalogue, float [B, n_items].
    """
    writer: pq.ParquetWriter | None = None
    try:
        for batch in read_batches(examples, catalogue):
            items, scores = top_k(restricted(score(batch), batch.candidates), batch.seen, DEPTH)
            table = rankings_table(batch, catalogue, items, scores)
            writer = writer or pq.ParquetWriter(out, table.schema, compression="zstd")
            writer.write_table(table)
            progress.update(len(table))
    finally:
        if writer is not None:
            writer.close()


class LanguageModelRanker:
    """The Ray Data actor: names of models and row groups in, rankings out. Holds one model at a time.

    Args:
        folders: name to model folder.
        examples: file that `write_examples` wrote.
        beams: of the constrained search.
        use_gpu: put the model on the actor's GPU.
    """

    def __init__(self, folders: dict[str, str], examples: str, beams: int, use_gpu: bool) -> None:
        self.folders, self.examples, self.beams = folders, Path(examples), beams
        self.device = "cuda" if use_gpu else "cpu"
        self.held = ""

    def __call__(self, work: pa.Table) -> pa.Table:
        """Columns `model` and `row_group` to rankings, with `model` in front and `left_out`, the items of each history
        that did not fit in the prompt, at the end."""
        tables = []
        for name, group in zip(work["model"].to_pylist(), work["row_group"].to_pylist()):
            self._hold(name)
            catalogue = self.recommender.catalogue
            batch = next(read_batches(self.examples, catalogue, [group]))
            items, scores, left_out = rank_batch(self.recommender, self.decoder, batch, DEPTH)
            table = rankings_table(batch, catalogue, items, scores)
            table = table.append_column("left_out", pa.array(left_out, pa.int32()))
            tables.append(table.add_column(0, "model", pa.array([name] * len(table), pa.string())))
        return pa.concat_tables(tables)

    def _hold(self, name: str) -> None:
        if name == self.held:
            return
        from rosepo.evaluation.decode import Decoder
        from rosepo.models.folder import load_recommender

        self.recommender = load_recommender(self.folders[name])
        self.recommender.model.to(self.device)
        self.decoder = Decoder(self.recommender.model, self.recommender.builder, self.beams)
        self.held = name


def rank_by_models(
    folders: dict[str, Path],
    examples: Path,
    out: Path,
    *,
    beams: int,
    actors: int,
    cpus_per_actor: float,
    use_gpu: bool,
    on_rows: Callable[[str, int], None],
) -> None:
    """Rank by language models on Ray Data actors; rows stream into `out/<name>.parquet` in the examples' order.

    Raises:
        StageError: an actor failed.
    """
    import ray
    from ray.data import ActorPoolStrategy

    groups = pq.ParquetFile(examples).num_row_groups
    work = [{"model": name, "row_group": group} for name in folders for group in range(groups)]
    dataset = work_dataset(work)
    dataset.context.execution_options.preserve_order = True
    constructor = {
        "folders": {name: str(folder.resolve()) for name, folder in folders.items()},
        "examples": str(examples.resolve()),
        "beams": beams,
        "use_gpu": use_gpu,
    }
    ranked = dataset.map_batches(
        LanguageModelRanker,
        fn_constructor_kwargs=constructor,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(actors, len(work))),
        num_cpus=cpus_per_actor,
        num_gpus=1 if use_gpu else None,
    )
    writers: dict[str, Any] = {}
    try:
        table: Any
        for table in ranked.iter_batches(batch_size=None, batch_format="pyarrow"):
            for name in pc.unique(table["model"]).to_pylist():
                rows = table.filter(pc.equal(table["model"], name)).drop_columns(["model"])
                if name not in writers:
                    writers[name] = pq.ParquetWriter(out / f"{name}.parquet", rows.schema, compression="zstd")
                writers[name].write_table(rows)
                on_rows(name, len(rows))
    except ray.exceptions.RayError as error:
        raise StageError(f"ranking by {' and '.join(folders)} failed: {_last_line(error)}") from error
    finally:
        for writer in writers.values():
            writer.close()


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
