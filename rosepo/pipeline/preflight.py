"""What would stop the work, found before it starts: settings, data, model, parts of one's own, CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rosepo.config import Config
from rosepo.run.ray_session import cluster_cpus, cluster_gpus, joins_cluster, local_cpus
from rosepo.run.resources import check_together, request_of, stage_use_gpu, use_gpu
from rosepo.utils.errors import UserError

SECTION_OF = {
    "sft": "sft",
    "oracle": "oracle",
    "pairs": "pairs",
    "align": "align",
    "sweep": "sweep",
    "evaluate": "evaluate",
}


def check_before_run(config: Config) -> dict[str, Any]:
    """What would stop a run, found before it starts: data, model, settings, resources. Returns the data's figures.

    Raises:
        UserError: the first fault.
    """
    from rosepo.data.prepare.prepare import inspect_data
    from rosepo.lm.model.policy import validate_model
    from rosepo.oracle.external_oracle import check_external
    from rosepo.sampling.strategies.mixture import check_negatives
    from rosepo.tuning.search_space import check_space

    if config.sweep.trials > 0:
        check_space(config)
    check_external(config.oracle)
    _check_strategies(config)
    _check_systems(config)
    if not config.pairs.score:
        raise UserError(
            "pairs.score=false leaves groups without what alignment reads: leave it out, or run `rosepo pairs` alone"
        )
    if not joins_cluster(config.ray):
        for section in asking_sections(config).values():
            use_gpu(request_of(config, section), local_cpus(config.ray), _local_gpus())
        if config.pairs.stream:
            check_together(config, local_cpus(config.ray), _local_gpus())
    data = inspect_data(config)
    validate_model(config)
    if data["exact"]:
        check_negatives(config.pairs.negatives, data["items"] - data["longest_sequence"], data["items"])
    return data


def check_named(config: Config, names: Sequence[str]) -> None:
    """What the named stages would refuse, found before Ray is started.

    Raises:
        UserError: a sweep that tries nothing, settings that `align` would refuse, an oracle (see `check_external`), or
            systems to evaluate that are not there.
    """
    from rosepo.oracle.external_oracle import check_external
    from rosepo.run.stages import find_stage
    from rosepo.tuning.search_space import check_space

    if "oracle" in names:
        check_external(config.oracle)
    kinds = {find_stage(name).kind for name in names}
    if "pairs" in kinds:
        _check_strategies(config)
    if "evaluate" in kinds:
        _check_systems(config)
    if not config.pairs.score and kinds & {"align", "sweep"}:
        raise UserError(
            "pairs.score=false leaves groups without what alignment reads: run `rosepo pairs --overwrite` with "
            "--set pairs.score=true first"
        )
    if "sweep" in names:
        if config.sweep.trials == 0:
            raise UserError("sweep.trials=0 tries nothing: say how many settings to try, --set sweep.trials=4")
        check_space(config)


def check_resources(config: Config, names: Sequence[str]) -> None:
    """Compare what the named stages ask for with the running session.

    Raises:
        UserError: a stage that could never start.
    """
    from rosepo.run.stages import find_stage

    sections = asking_sections(config)
    for kind in dict.fromkeys(find_stage(name).kind for name in names):
        if kind in sections:
            stage_use_gpu(config, sections[kind])
    if config.pairs.stream and {"pairs", "align"} <= {find_stage(name).kind for name in names}:
        check_together(config, cluster_cpus(), cluster_gpus())


def asking_sections(config: Config) -> dict[str, str]:
    """The stages that will ask the cluster for processes, and their sections of the configuration."""
    idle = {"oracle"} if config.oracle.kind != "sasrec" else set()
    idle |= {"sweep"} if config.sweep.trials == 0 else set()
    return {stage: section for stage, section in SECTION_OF.items() if stage not in idle}


def _check_strategies(config: Config) -> None:
    """Refuse parts of sampling that are named and not there.

    Raises:
        UserError: a strategy that cannot be imported, or an encoder that is neither a folder nor on the hub.
    """
    from rosepo.lm.model.loading import find_source
    from rosepo.lm.model.title_embeddings import BUILT_IN
    from rosepo.utils.imports import find_callable

    for name in config.pairs.used:
        if ":" in name:
            find_callable(name, "pairs.strategies")
    if config.pairs.asking("embeddings") and config.pairs.encoder not in BUILT_IN:
        try:
            find_source(config.pairs.encoder)
        except UserError as error:
            raise UserError(str(error).replace("model.path", "pairs.encoder")) from error


def _check_systems(config: Config) -> None:
    """Refuse systems to evaluate that are not there, or files without the columns that are read.

    Raises:
        UserError: naming the key.
    """
    from rosepo.evaluation.external_models import sources_of
    from rosepo.evaluation.prediction_files import read_headers
    from rosepo.lm.model.loading import find_source

    for system in config.evaluate.external.values():
        if system.kind == "predictions":
            read_headers(sources_of(system), system.key)
            continue
        try:
            find_source(system.location)
        except UserError as error:
            raise UserError(str(error).replace("model.path", system.key)) from error


def _local_gpus() -> int:
    import torch

    return torch.cuda.device_count()
