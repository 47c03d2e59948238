"""`rosepo check`: everything that can be known without training, and nothing changed by asking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosepo.config import Config, TrainConfig
from rosepo.config.auto import LogFacts, open_keys
from rosepo.pipeline.chosen_settings import Choice, choices_table, settled
from rosepo.pipeline.planning import plan_run
from rosepo.pipeline.preflight import asking_stages, check_before_run
from rosepo.run.joining import joins_cluster
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import of_round
from rosepo.run.ray_session import local_cpus
from rosepo.run.resources import request_of
from rosepo.run.stages import names_of_run
from rosepo.training.feed.micro_batching import most_tokens
from rosepo.training.feed.schedule import Schedule
from rosepo.utils.console import echo, table

if TYPE_CHECKING:
    from rosepo.data.prompts import PromptBuilder

SAMPLED_TITLES = 20_000
"""Titles whose tokens are counted."""
BYTES_A_STATE = {"float32": (4, 4, 8), "bfloat16": (2, 4, 12)}
"""Bytes a trained parameter: weights, gradients, optimizer (AdamW's two moments; float32 masters under bfloat16)."""
BYTES_MEAN = 4
"""Bytes a trained parameter of the running mean of the weights."""
BYTES_QUANTIZED = {"none": 0.0, "nf4": 0.5, "int8": 1.0}
"""Bytes a weight of a quantized base."""


def run_check(config: Config, root: Path, measured: bool = False, debug: bool = False) -> None:
    """Print what a run would do; see `rosepo check --help`.

    Args:
        measured: also make every stage for a few users, for how long they take here.

    Raises:
        UserError: whatever would stop the run.
    """
    asked, data = config, check_before_run(config)
    from rosepo.data.prepare.prepare import describe

    files = data["files"]
    told = [
        ["interactions", files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"],
        ["columns", ", ".join(f"{field}={column}" for field, column in data["columns"].items())],
        ["size", f"{data['bytes'] / 2**20:,.1f} MiB"],
    ]
    echo("data")
    echo(table(told))
    echo(describe(data) if data["exact"] else f"  {data['note']}")
    facts = LogFacts.of(data) if data["exact"] else None
    choices: tuple[Choice, ...] = ()
    if facts is not None:
        config, choices = settled(config, facts)
    if choices:
        echo(f"settings that follow from the data, as nobody gave them\n{choices_table(choices)}")
    elif open_keys(config):
        echo(f"settings that will follow from the data: {', '.join(open_keys(config))}")
    echo("model")
    model = _model(config, data)
    echo(table(list(model["shown"].items())))
    echo("work")
    header = ("stage", "rows", "steps", "memory a process, at least", "with full micro-batches")
    echo(table(_work(config, data, model["facts"]), header=header))
    echo("resources")
    echo(table(_resources(config), header=("stage", "processes", "CPUs in all", "CPUs there")))
    _say_outputs(config, root)
    if measured:
        from rosepo.cli.measure import measure, paces_text

        echo(paces_text(config, *measure(asked, root, debug)))
    echo("no fault found")


def check_groups(groups: Path) -> None:
    """Print what a groups table holds, after every group was compared with the examples beside it.

    Raises:
        UserError: the first promise that is broken; see `audit_groups`.
    """
    from rosepo.lm.model.model_folder import load_builder
    from rosepo.sampling.audit import audit_candidates, audit_groups

    run = groups.absolute().parent
    policy = run / "sft"
    for folder in (groups, run / "examples", policy):
        read_manifest(folder)  # refuses what an older rosepo made
    builder = load_builder(policy) if policy.is_dir() else None
    found = audit_groups(groups, run / "examples", builder)
    echo(f"{groups}: {found['groups']:,} groups of {found['negatives']} rejected titles")
    if found["epsilon"]:
        echo(table([[name, f"{value:.3f}"] for name, value in found["epsilon"].items()], header=("strategy", "mean ε")))
    if found["prompts_cut"] is None:
        why = f"{policy} is not there" if builder is None else "these are titles alone (pairs.score=false)"
        echo(f"tokens were not compared: {why}")
    else:
        echo(f"tokens are those of {policy}; {found['prompts_cut']:,} prompts without their oldest items")
    lists = audit_candidates(run / "examples")
    if lists is not None:
        echo(
            f"candidates: {lists['lists']:,} lists of {lists['candidates']}; the best fixed slot finds the target in "
            f"{lists['probe']:.1%} ({1 / lists['candidates']:.1%} is chance)"
        )
    echo("no fault found")


def _model(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    from rosepo.lm.model.policy import validate_model

    facts = validate_model(config)
    trainable = facts["trainable_parameters"]
    shown: dict[str, Any] = {
        "source": f"{facts['source']} ({facts['model_type']})",
        "parameters": f"{facts['parameters']:,}",
        "trained": "an adapter's" if trainable is None else f"{trainable:,}",
        "vocabulary": facts["vocabulary"],
        "positions": facts["max_positions"] or "no limit named",
        "shared prefix": "yes" if facts["shared_prefix"] else "no: one row a completion, slower",
    }
    builder, told = _sample_builder(config)
    if told is not None:
        shown["chat template"] = told
    mean, longest = float(builder.lengths.mean()), int(builder.lengths.max())
    piece = float(builder.piece_lengths.mean())
    shown["title tokens"] = f"{mean:.1f} on average, {longest} at most (of {len(builder):,} titles)"
    room = config.model.max_length - builder.template_tokens - builder.longest_completion
    listed = config.prepare.candidates * piece if builder.lists_candidates else 0.0
    room -= int(listed)
    history = max(0, min(config.prepare.max_history, int(room / piece)))
    shown["history"] = f"about {history} items fit in model.max_length={config.model.max_length}"
    if data["exact"]:
        titles = data["mean_history"]["train"] * piece + mean + 1
        facts["row_tokens"] = min(config.model.max_length, builder.template_tokens + listed + titles)
    else:
        facts["row_tokens"] = config.model.max_length
    return {"facts": facts, "shown": shown}


def _sample_builder(config: Config) -> tuple[PromptBuilder, str | None]:
    """Prompts over the first titles of the items file and the longest one, and what is to be said of a pretrained
    model's chat template.

    Raises:
        UserError: titles that cannot be told apart, or do not fit.
    """
    import numpy as np

    from rosepo.data.chat import unused
    from rosepo.data.prompts import PromptBuilder
    from rosepo.data.readers.interactions import read_items
    from rosepo.lm.cards.usage import chat_use
    from rosepo.lm.model.loading import load_tokenizer
    from rosepo.lm.model.scratch import train_tokenizer

    titles = list(dict.fromkeys(read_items(config.data)["title"].to_pylist()))
    titles = list(dict.fromkeys([*titles[:SAMPLED_TITLES], max(titles, key=lambda title: len(title.encode()))]))
    model = config.model
    if model.path is None:
        tokenizer: Any = train_tokenizer(titles, np.ones(len(titles), np.int64), model.scratch_config, model.template)
    else:
        tokenizer = load_tokenizer(model.path, model.revision)
    builder = PromptBuilder(tokenizer, titles, model.template, model.max_length)
    if model.path is None:
        return builder, None
    chat = chat_use(builder, tokenizer, titles)
    if chat is None:
        return builder, f"not used: {unused(tokenizer, model.template)}"
    return builder, f"used; ids are those of apply_chat_template {chat.told}"


def _work(config: Config, data: dict[str, Any], facts: dict[str, Any]) -> list[list[Any]]:
    if not data["exact"]:
        return [["sft", "unknown before prepare", "", *_memories(config, "sft", facts)]]
    groups = data["examples"]["train"]
    if config.pairs.newest is not None:
        groups = min(groups, config.pairs.newest * data["users"])
    # Rows of a step are users where rows are trajectories; those without a training example are few.
    aligned = min(groups, data["users"]) if config.trajectories else groups
    tuned = data["examples"]["train"] if config.model.template.candidates else data["trajectories"]
    rows = [["sft", tuned, _steps(config.sft, tuned), *_memories(config, "sft", facts)]]
    for number in range(1, config.pairs.rounds + 1):
        rows.append([of_round("pairs", number), groups, "", "", ""])
        told = _memories(config, "align", facts)
        rows.append([of_round("align", number), aligned, _steps(config.align, aligned), *told])
    return rows


def _steps(train: TrainConfig, rows: int) -> int:
    return Schedule(rows, train.batch_size, seed=0, epochs=train.epochs).steps


def _memories(config: Config, stage: str, facts: dict[str, Any]) -> tuple[str, str]:
    """Of one worker: with micro-batches of mean rows, and with one of as many tokens as there can be, each of which
    predicts another."""
    from rosepo.lm.rows.target_logps import MAX_LOGITS

    train: TrainConfig = getattr(config, stage)
    most = most_tokens(train, config.full_row(stage))
    mean = min(int(facts["row_tokens"] * train.micro_batch_size), most)
    logits = min(most * facts["vocabulary"], MAX_LOGITS)
    return _memory(train, facts, mean), _memory(train, facts, most, logits)


def _memory(train: TrainConfig, facts: dict[str, Any], tokens: int, logits: int = 0) -> str:
    """One worker's weights, gradients and optimizer states as ZeRO shares them out, and the activations and logits of a
    micro-batch of so many; without what is offloaded, which lies in the CPU's memory."""
    # bfloat16 with ZeRO-0 is autocast: the weights stay as they are (`Engine`).
    weights, gradients, optimizer = BYTES_A_STATE["float32" if train.zero_stage == 0 else train.precision]
    optimizer += 0 if train.ema is None else BYTES_MEAN
    trained, quantized = facts["trainable_parameters"] or 0, facts["quantized_parameters"]
    whole = facts["parameters"] - quantized + (trained if facts["adapter"] == "new" else 0)
    share = 1.0 / train.workers
    states = quantized * BYTES_QUANTIZED[facts["quantize"]]
    if train.offload != "parameters":
        states += whole * weights * (share if train.zero_stage >= 3 else 1.0)
    states += trained * gradients * (share if train.zero_stage >= 2 else 1.0)
    if train.offload == "none":
        states += trained * optimizer * (share if train.zero_stage >= 1 else 1.0)
    # Korthikanti et al. (arXiv 2205.05198), equation 1: 34 bytes a token, layer and hidden unit at two bytes a number.
    a_layer = 2 if train.activation_checkpointing else 34
    number = 2 if train.precision == "bfloat16" else 4
    states += a_layer * number / 2 * facts["layers"] * facts["hidden_size"] * tokens
    states += logits * (number + 4)  # and their log-probabilities in float32
    return f"{states / 2**30:,.2f} GiB"


def _resources(config: Config) -> list[list[Any]]:
    there = "asked at the start" if joins_cluster(config.ray) else f"{local_cpus(config.ray)}, started here"
    rows: list[list[Any]] = []
    for stage in asking_stages(config):
        need = request_of(config, stage)
        rows.append([stage, f"{need.count_key}={need.count}", f"{need.cpus:g}", there])
    if config.pairs.stream:
        both = sum(request_of(config, stage).cpus for stage in ("pairs", "align"))
        rows.append(["pairs and align at once", "pairs.stream=true", f"{both:g}", there])
    return rows


def _say_outputs(config: Config, root: Path) -> None:
    plan = plan_run(config, root, names_of_run(config), overwrite=True)
    echo(f"output {root}")
    words = {
        "done": "up to date",
        "missing": "to be made",
        "replace": "made by another configuration: needs --overwrite",
    }
    echo(table([[step.stage.folder, words[step.state]] for step in plan.stages]))
