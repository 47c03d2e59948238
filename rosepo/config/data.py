"""Settings of the data: where it comes from and how it becomes examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rosepo.config.base import Count, Fraction, Section, refuse_credentials


class ColumnsConfig(Section):
    """Names of the columns in the user's own files."""

    user_id: str = "user_id"
    item_id: str = "item_id"
    rating: str | None = "rating"
    """null: there is none, whatever columns the files have."""
    timestamp: str = "timestamp"
    title: str = "title"
    """Or several columns in braces, with what stands between them: `{movie_title} ({release_year})`."""
    categories: str = "categories"


class DataConfig(Section):
    """Where the interactions and the items come from."""

    dataset: Literal["movietweetings-100k"] | None = None
    """A data set that ships with rosepo, instead of files."""
    interactions: str | None = None
    """Parquet, CSV, TSV, JSON Lines, MovieLens `.dat`/`.csv` or RecBole `.inter`: a file, a folder or a glob; a local
    path or a URL that pyarrow reads (`s3://`, `gs://`)."""
    items: str | None = None
    """The same for items (RecBole: `.item`)."""
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "movielens", "recbole"] = "auto"
    """`auto` goes by the file's ending and, for CSV, by its header."""
    columns: ColumnsConfig = ColumnsConfig()

    def faults(self) -> Iterator[str]:
        files = [name for name in ("interactions", "items") if getattr(self, name) is not None]
        if self.dataset is not None and files:
            yield f"data.dataset={self.dataset} excludes data.{files[0]}: give one or the other"
        for name in files:
            refuse_credentials(f"data.{name}", getattr(self, name))
        if len(files) == 1:
            missing = "items" if files == ["interactions"] else "interactions"
            yield f"data.{files[0]} is given without data.{missing}: both are needed"


class PrepareConfig(Section):
    """From interactions to examples."""

    min_rating: float | None = Field(default=None, allow_inf_nan=False)
    """Keep interactions rated at least this. None keeps all, whatever their rating."""
    k_core: Count = 5
    """Drop users and items with fewer interactions, repeated until stable."""
    max_users: Count | None = None
    """Keep so many users of the k-core, chosen by a hash of their ids; the catalogue stays whole. None keeps all. For a
    trial with a model that all users would take days."""
    split: Literal["leave_one_out", "temporal"] = "leave_one_out"
    """`leave_one_out`: each user's last item is test, the one before validation. `temporal`: by global time."""
    ties: Literal["hash", "file", "item_id"] = "hash"
    """What orders interactions of one user at the same time: `hash` of (seed, user, item); `file`, where they stand in
    the files (sorted by path); `item_id`, for comparisons: ids often follow release dates, which leaks what is next."""
    validation_fraction: Fraction = 0.1
    """Share of interactions (by time) in validation. Used by `temporal` alone."""
    test_fraction: Fraction = 0.1
    """Share of interactions (by time) in test. Used by `temporal` alone."""
    min_history: Count = 1
    """Shortest history that makes an example."""
    max_history: Count = 50
    """Longest history; older items are left out and counted."""
    window: Literal["anchored", "sliding"] = "anchored"
    """How long training histories are cut. `anchored` keeps histories of one user prefixes of one another, so that they
    share a row in training; `sliding` always keeps the newest `max_history` items."""
    candidates: Annotated[int, Field(ge=0)] = 0
    """Candidates a list (target included) for the candidate protocol; 0 writes none."""
    duplicate_titles: Literal["auto", "disambiguate", "refuse"] = "auto"
    """Two items with one normalised title: append ` (2)`, ` (3)`, … in item order, or stop. `auto` appends, unless a
    column of the items tells them apart, which the refusal then names (data.columns.title)."""

    def faults(self) -> Iterator[str]:
        if self.validation_fraction + self.test_fraction >= 1.0:
            yield "prepare.validation_fraction + prepare.test_fraction must stay below 1"
        if self.split != "temporal" and self.model_fields_set & {"validation_fraction", "test_fraction"}:
            yield "prepare.validation_fraction and prepare.test_fraction are used by prepare.split=temporal alone"
        if self.max_history < self.min_history:
            yield f"prepare.max_history={self.max_history} is below prepare.min_history={self.min_history}"
        if self.candidates == 1:
            yield "prepare.candidates=1 would hold the target alone: use 0 or at least 2"
