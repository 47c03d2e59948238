"""The rankings of one evaluation while they are made: which parts are left, and who makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rosepo
from rosepo.config import Config
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.readers.digests import FileDigests
from rosepo.evaluation.baselines import training_transitions, write_transitions
from rosepo.evaluation.external_models import sources_of
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, PART_BATCHES, PARTS, Part
from rosepo.evaluation.predictions import Predictions
from rosepo.evaluation.rankers import Answering, Ranker, RankerSettings, ranking
from rosepo.evaluation.rankings import DEPTH, RANKINGS_FOLDER, check_complete, open_rankings
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
        """Rank by baselines and language models (name to folder or hub id) on one pool of Ray Data actors.

        Returns:
            Seconds that an actor was at it, of all baselines and of all models.

        Raises:
            UserError: an oracle or a model that cannot be loaded.
            StageError: an actor failed for good; the parts that are finished stay.
        """
        names = [*baselines, *models]
        if not names:
            return {}
        use_gpu = stage_use_gpu(self.config, "evaluate")
        device = "cuda" if use_gpu else "cpu"
        left = [(name, part) for name in names for part in self._left(name, self._made_from(name, device))]
        total = len(names) * len(self.parts)
        if done := total - len(left):
            echo(f"  goes on from {done} of {total} parts of {self.folder_name} that an earlier run finished")
        busy = self._make(left, names, models, use_gpu) if left else Counter()
        for name in names:
            check_complete(self.folder_of(name), self.parts)
        return {
            "+".join(group): round(sum(busy[name] for name in group) / self.config.evaluate.actors, 2)
            for group in (baselines, [*models])
            if group
        }

    def _make(
        self, left: list[tuple[str, Part]], names: Sequence[str], models: Mapping[str, str], use_gpu: bool
    ) -> Counter[str]:
        """Have actors make the parts that are left of the rankings of some systems; seconds by system."""
        config, busy = self.config, Counter[str]()
        total, rows = len(names) * len(self.parts), len(names) * sum(part.rows for part in self.parts)
        work = [{"system": name, **asdict(part)} for name, part in left]
        pool: dict[str, Any] = {"actors": config.evaluate.actors, "cpus_per_actor": config.evaluate.cpus_per_actor}
        before = rows - sum(part.rows for _, part in left)
        with (
            self._transitions(any(name == "markov" for name, _ in left)) as transitions,
            Progress(", ".join(names) + self.doing, rows, "examples", before=before) as progress,
        ):
            settings = self._settings(models, transitions, "cuda" if use_gpu else "cpu")
            progress.doing("starting actors")
            try:
                for answer in answers_of_actors(work, Ranker, settings, **pool, use_gpu=use_gpu):
                    progress.update(answer["rows"])
                    busy[answer["system"]] += answer["seconds"]
            except Exception as error:
                done = total - sum(not (self.folder_of(name) / part.name).exists() for name, part in left)
                lost = lost_actor(error, "a ranking actor", done, total, "evaluate.actors")
                raise user_error_from(error) or lost from error
        return busy

    @contextmanager
    def _transitions(self, wanted: bool) -> Iterator[Path]:
        """The file of counts for actors that rank by them, where any will; it is gone afterwards."""
        path = self.out / TRANSITIONS_FILE
        try:
            if wanted:
                pairs = training_transitions(self.paths.examples)
                write_transitions(pairs, self.catalogue.train_count, path)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _settings(self, models: Mapping[str, str], transitions: Path, device: str) -> RankerSettings:
        config = self.config
        return RankerSettings(
            prompts=config.model,
            max_history=config.prepare.max_history,
            beams=config.evaluate.beams,
            models=dict(models),
            examples=self.examples,
            catalogue=self.paths.examples / ITEMS_FILE,
            transitions=transitions,
            oracle=self.paths.oracle,
            out=self.folder,
            device=device,
            precision=config.precision("evaluate", device == "cuda"),
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
        origin = digest(
            [FORMAT, DEPTH, PARTS, PART_BATCHES, rosepo.__version__, read_manifest(self.paths.examples), sources,
             self.config.model.template.candidates,
             self.config.evaluate.model_dump(include={"split", "max_examples", "batch_size", "beams"})]
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
