"""What would stop the work, found before it starts: settings, data, model, parts of one's own, CPUs and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rosepo.config import Config, EvaluateConfig, PairsConfig
from rosepo.config.auto import open_keys
from rosepo.pipeline.plan import RunPlan
from rosepo.run.joining import check_session, joins_cluster
from rosepo.run.ray_session import cluster_size, local_cpus
from rosepo.run.resources import check_together, request_of, stage_use_gpu, use_gpu
from rosepo.run.stages import find_stage, names_of_run
from rosepo.utils.errors import UserError


def check_before_run(config: Config) -> dict[str, Any]:
    """What would stop a run, found before it starts: data, model, settings, resources. Returns the data's figures.

    Raises:
        UserError: the first fault.
    """
    import torch

    from rosepo.data.prepare.prepare import inspect_data
    from rosepo.lm.model.policy import validate_model
    from rosepo.sampling.strategies.mixture import check_negatives

    check_named(config, names_of_run(config))
    check_session(config.ray)
    if not joins_cluster(config.ray):
        there = local_cpus(config.ray), torch.cuda.device_count()
        for section in asking_stages(config):
            use_gpu(request_of(config, section), *there)
        if config.pairs.stream:
            check_together(config, *there)
    data = inspect_data(config)
    validate_model(config)
    if data["exact"]:
        check_negatives(config.pairs.negatives, data["items"] - data["longest_sequence"], data["items"])
    return data


def check_named(config: Config, names: Sequence[str]) -> None:
    """What the named stages would refuse, found before Ray is started.

    Raises:
        UserError: a sweep that tries nothing, settings that `align` would refuse, more workers than rows a step, or an
            oracle, a strategy, an encoder, systems to evaluate or items to add that are not there.
    """
    from rosepo.data.added_items import plan_added
    from rosepo.oracle.external_oracle import check_external
    from rosepo.tuning.search_space import check_space

    if "oracle" in names:
        check_external(config.oracle)
    kinds = {find_stage(name).kind for name in names}
    for kind in ("sft", "oracle", "align"):
        if kind in kinds:
            _check_shares(config, kind)
    if "pairs" in kinds:
        _check_strategies(config.pairs)
    if "evaluate" in kinds:
        _check_systems(config.evaluate)
        if config.evaluate.add_items is not None:
            plan_added(config, config.evaluate.add_items, "evaluate.add_items")
    if not config.pairs.score and kinds & {"align", "sweep"}:
        raise UserError(
            "pairs.score=false leaves groups without what alignment reads: leave it out and make them again, `rosepo "
            "pairs --overwrite --set pairs.score=true`, or run `rosepo pairs` alone"
        )
    if "sweep" in names:
        if config.sweep.trials == 0:
            raise UserError("sweep.trials=0 tries nothing: say how many settings to try, --set sweep.trials=4")
        check_space(config)


def check_resources(plan: RunPlan) -> None:
    """Compare what the stages that are to be made ask for with the running session.

    Raises:
        UserError: a stage that could never start.
    """
    asking = asking_stages(plan.config)
    for kind in dict.fromkeys(step.stage.kind for step in plan.left):
        if kind in asking:
            stage_use_gpu(plan.config, kind)
    if plan.streamed:
        check_together(plan.config, *cluster_size())


def asking_stages(config: Config) -> list[str]:
    """The kinds of stages that will ask the cluster for processes, in order; each has a section of its name."""
    idle = {"prepare"} | ({"oracle"} if config.oracle.kind != "sasrec" else set())
    return [kind for kind in dict.fromkeys(find_stage(name).kind for name in names_of_run(config)) if kind not in idle]


def _check_shares(config: Config, section: str) -> None:
    """Refuse a training of more workers than a step has rows: those without any would wait for the others, and cost as
    much."""
    train = getattr(config, section)
    follows = f"{section}.batch_size" in open_keys(config)  # from the number of workers too
    if not follows and train.workers > train.batch_size:
        raise UserError(
            f"{section}.workers={train.workers} share the {train.batch_size} rows of a step ({section}.batch_size), so"
            f" that {train.workers - train.batch_size} would never have one: lower {section}.workers, or raise"
            f" {section}.batch_size to a multiple of it"
        )


def _check_strategies(pairs: PairsConfig) -> None:
    """Refuse parts of sampling that are named and not there.

    Raises:
        UserError: a strategy that cannot be imported, or an encoder that is neither a folder nor on the hub.
    """
    from rosepo.lm.titles.title_embeddings import BUILT_IN
    from rosepo.utils.imports import find_callable

    for name in pairs.used:
        if ":" in name:
            find_callable(name, "pairs.strategies")
    if pairs.asking("embeddings") and pairs.encoder not in BUILT_IN:
        _check_model(pairs.encoder, "pairs.encoder")


def _check_systems(evaluate: EvaluateConfig) -> None:
    """Refuse systems to evaluate that are not there, or files without the columns that are read.

    Raises:
        UserError: naming the key.
    """
    from rosepo.evaluation.external_models import sources_of
    from rosepo.evaluation.prediction_files import read_headers

    for system in evaluate.external.values():
        if system.kind == "predictions":
            read_headers(sources_of(system), system.key)
        else:
            _check_model(system.location, system.key)


def _check_model(path: str, key: str) -> None:
    """Raises UserError for a model, named by a key of the configuration, that is neither a folder nor on the hub."""
    from rosepo.lm.model.model_source import find_source

    try:
        find_source(path)
    except UserError as error:
        raise UserError(str(error).replace("model.path", key)) from error
