"""The rankings of one evaluation while they are made: which parts are left, and who makes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rosepo
from rosepo.config import Config
from rosepo.data.catalogue import Catalogue, ranked_items
from rosepo.data.readers.digests import FileDigests
from rosepo.evaluation.baselines import training_transitions, write_transitions
from rosepo.evaluation.external_models import sources_of
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, PART_BATCHES, PARTS, Part
from rosepo.evaluation.predictions import Predictions
from rosepo.evaluation.rankers import Answering, Ranker, RankerSettings, ranking
from rosepo.evaluation.rankings import DEPTH, RANKINGS_FOLDER, check_complete, open_rankings
from rosepo.lm.serving.server import serving_of
from rosepo.oracle.load import read_kind
from rosepo.run.manifest import read_manifest
from rosepo.run.ray_session import answers_of_actors
from rosepo.run.resources import stage_use_gpu
from rosepo.run.shard_files import lost_actor
from rosepo.utils.console import Progress, echo
from rosepo.utils.errors import user_error_from
from rosepo.utils.files import digest

if TYPE_CHECKING:
    from rosepo.run.paths import RunPaths

FORMAT = 2
"""To be raised with any change that gives other rankings for the same models and settings."""

TRANSITIONS_FILE = "_transitions.arrow"


@dataclass(frozen=True)
class Ranking:
    """The rankings of one evaluation, while they are made; or other answers to its examples, see `freely`.

    Attributes:
        out: the evaluation's folder.
        catalogue: what is ranked; where items were added, `out` holds its file.
        parts: of every system's rankings.
        examples_name: file of the examples, in `out`.
        folder_name: of what is made, in `out`.
        answering: what is asked of language models.
        doing: that, on the progress line.
        made_by: what the answers of language models depend on beside models, examples and search.
    """

    config: Config
    paths: RunPaths
    out: Path
    catalogue: Catalogue
    parts: list[Part]
    examples_name: str = EXAMPLES_FILE
    folder_name: str = RANKINGS_FOLDER
    answering: Answering = ranking
    doing: str = ""
    made_by: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.out / self.folder_name

    @property
    def examples(self) -> Path:
        """The file of what is measured."""
        return self.out / self.examples_name

    def folder_of(self, name: str) -> Path:
        """Where a system's part files stand."""
        return self.folder / f"{name}.parquet"

    def by_actors(self, models: Mapping[str, str], baselines: Sequence[str] = ()) -> dict[str, float]:
        """Rank by baselines and language models (name to folder or hub id) on one pool of Ray Data actors; seconds that
        an actor was at each.

        Raises:
            UserError: an oracle or a model that cannot be loaded.
            StageError: an actor failed for good; the parts that are finished stay.
        """
        names, config = [*baselines, *models], self.config
        use_gpu = stage_use_gpu(config, "evaluate")
        device = "cuda" if use_gpu else "cpu"
        left = [(name, part) for name in names for part in self._left(name, self._made_from(name, device))]
        total, rows = len(names) * len(self.parts), len(names) * sum(part.rows for part in self.parts)
        if done := total - len(left):
            echo(f"  goes on from {done} of {total} parts of {self.folder_name} that an earlier run finished")
        busy = dict.fromkeys(names, 0.0)
        if left:
            work = [{"system": name, **asdict(part)} for name, part in left]
            pool: dict[str, Any] = {
                "actors": config.evaluate.actors,
                "cpus_per_actor": config.evaluate.cpus_per_actor,
                "gpus_per_actor": config.evaluate.gpus_per_actor if use_gpu else 0,
            }
            before = rows - sum(part.rows for _, part in left)
            with (
                self._transitions(any(name == "markov" for name, _ in left)) as transitions,
                Progress(", ".join(names) + self.doing, rows, "examples", before=before) as progress,
            ):
                progress.doing("starting actors")
                settings = self._settings(models, transitions, use_gpu)
                try:
                    for answer in answers_of_actors(work, Ranker, settings, **pool):
                        progress.update(answer["rows"])
                        busy[answer["system"]] += answer["seconds"]
                except Exception as error:
                    done = total - sum(not (self.folder_of(name) / part.name).exists() for name, part in left)
                    lost = lost_actor(error, "a ranking actor", done, total, "evaluate.actors")
                    raise user_error_from(error) or lost from error
        for name in names:
            check_complete(self.folder_of(name), self.parts)
        return {name: round(seconds / config.evaluate.actors, 2) for name, seconds in busy.items()}

    @contextmanager
    def _transitions(self, wanted: bool) -> Iterator[Path]:
        """The file of counts for actors that rank by them, where any will; it is gone afterwards."""
        path = self.out / TRANSITIONS_FILE
        try:
            if wanted:
                write_transitions(training_transitions(self.paths.examples), self.catalogue.train_count, path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _settings(self, models: Mapping[str, str], transitions: Path, use_gpu: bool) -> RankerSettings:
        config = self.config
        precision = config.precision("evaluate", use_gpu)
        return RankerSettings(
            prompts=config.model,
            max_history=config.prepare.max_history,
            beams=config.evaluate.beams,
            models=dict(models),
            examples=self.examples,
            catalogue=ranked_items(self.paths.examples, self.out),
            transitions=transitions,
            oracle=self.paths.oracle,
            out=self.folder,
            device="cuda" if use_gpu else "cpu",
            precision=precision,
            serving=serving_of(config.evaluate, precision, use_gpu),
            answering=self.answering,
        )

    def by_predictions(self, predictions: list[Predictions]) -> None:
        """Write the lists of other systems as rankings, and tell what was amiss with them."""
        for one in predictions:
            one.rank(self.examples, self.folder_of(one.name), self.parts)
            echo(f"  {one.told()}")

    def _left(self, name: str, sources: Mapping[str, Any]) -> list[Part]:
        """The parts of a system's rankings that are left to make."""
        # What was made again under the same settings may differ by a bit: manifests say when a thing was made.
        own = len(self.catalogue) - self.catalogue.added
        added = [self.catalogue.item_ids[own:].tolist(), self.catalogue.titles[own:]] if self.catalogue.added else []
        origin = digest(
            [FORMAT, DEPTH, PARTS, PART_BATCHES, rosepo.__version__, read_manifest(self.paths.examples), sources,
             self.config.model.template.candidates,
             self.config.evaluate.model_dump(include={"split", "max_examples", "batch_size", "beams", "engine"}),
             *added]
        )  # fmt: skip
        finished = read_manifest(self.paths.evaluation) is not None
        earlier = self.paths.evaluation / self.folder_name / f"{name}.parquet" if finished else None
        return open_rankings(self.folder_of(name), self.parts, origin, earlier)

    def _made_from(self, name: str, device: str) -> dict[str, Any]:
        """What the rankings of a system depend on beside examples and search."""
        if name in ("popular", "markov"):
            return {}
        if name == "oracle":
            return {"oracle": read_manifest(self.paths.oracle), "device": device}
        external = self.config.evaluate.external.get(name)
        if external is None:
            made: dict[str, Any] = {"model": read_manifest(self.paths.sft if name == "sft" else self.paths.aligned)}
        else:
            prompts = self.config.model.model_dump(include={"template", "max_length"})
            files = FileDigests().of({source.name: source for source in sources_of(external)})
            made = {"model": external.location, "files": files, "prompts": prompts}
        return {**made, **self.made_by, "device": device}


def oracle_name(folder: Path) -> str | None:
    """What the oracle in a folder is, in words: SASRec, or the import path of a scorer; None without a folder.

    Raises:
        UserError: a folder that says nothing that can be read.
    """
    if not folder.is_dir():
        return None
    about = read_kind(folder)
    if about["kind"] == "sasrec":
        from rosepo.oracle.crossfit import n_members

        return "SASRec" if (models := n_members(folder)) == 1 else f"mean of {models} SASRecs"
    return str(about["scorer"])
