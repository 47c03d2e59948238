"""The command line. Stages take ``--config``, ``--out``, ``--set``; nothing heavy is imported before it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import rosepo
from rosepo.cli.exit_codes import ends_clearly
from rosepo.cli.help import stage_help
from rosepo.cli.options import (
    AddItemsOption,
    ConfigOption,
    DebugOption,
    InteractionsOption,
    ItemsOption,
    OutOption,
    OverwriteOption,
    RoundOption,
    SetOption,
)
from rosepo.cli.run_stages import quoted, resolve, run_named, run_whole
from rosepo.cli.tools import compare, experiments, merge, recommend, report
from rosepo.run.paths import of_round
from rosepo.run.signals import interrupt_on_sigterm

app = typer.Typer(
    name="rosepo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help=(
        "Turn a log of interactions into a language-model recommender aligned with what users prefer.\n\n"
        "Start with `rosepo run --set data.dataset=movietweetings-100k --out runs/first`, or bring your own log:\n"
        "`rosepo run --interactions ratings.csv --items movies.csv --out runs/mine`.\n\n"
        "The stages: prepare → sft, oracle → pairs → (sweep →) align → evaluate. Each command runs one of them on the "
        "same --out folder; `run` does them all and passes over what is up to date."
    ),
)


def _stage_command(name: str) -> None:
    @app.command(name, help=stage_help(name))
    @ends_clearly()
    def command(
        out: OutOption,
        config: ConfigOption = None,
        set_: SetOption = None,
        overwrite: OverwriteOption = False,
        debug: DebugOption = False,
    ) -> None:
        run_named(resolve(out, config, set_), out, name, overwrite, debug)


def _round_command(name: str) -> None:
    @app.command(name, help=stage_help(name))
    @ends_clearly()
    def command(
        out: OutOption,
        config: ConfigOption = None,
        set_: SetOption = None,
        round: RoundOption = 1,
        overwrite: OverwriteOption = False,
        debug: DebugOption = False,
    ) -> None:
        run_named(resolve(out, config, set_), out, of_round(name, round), overwrite, debug)


@app.command("check")
@ends_clearly(keeps_log=False)
def check(
    config: ConfigOption = None,
    out: OutOption = Path("runs/rosepo"),
    set_: SetOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    groups: Annotated[
        Path | None,
        typer.Option("--groups", help="Check a groups table of a run instead, e.g. runs/demo/groups: every promise."),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also make every stage for a few users, beside --out and then removed: how long each will take on "
            "this machine, and how far run.budget would go. Takes minutes.",
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Everything that can be known before training, without side effects.

    Reads the configuration and the files, counts what the filters would keep, measures token lengths, compares the
    resources asked for with the cluster's, and estimates steps and memory.
    """
    from rosepo.cli.check import check_groups, run_check

    if groups is not None:
        check_groups(groups)
    else:
        run_check(resolve(out, config, set_, interactions, items), out, measure, debug)


@app.command("prepare", help=stage_help("prepare"))
@ends_clearly()
def prepare(
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    run_named(resolve(out, config, set_, interactions, items), out, "prepare", overwrite, debug)


for _name in ("sft", "oracle", "pairs", "align", "sweep"):
    (_round_command if _name in ("pairs", "align") else _stage_command)(_name)


@app.command("evaluate", help=stage_help("evaluate"))
@ends_clearly()
def evaluate(
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]PATH_OR_ID",
            help="Rank by this model too: a model folder of another run on the same catalogue, or any causal LM or "
            "adapter, read with this run's template; may be repeated.",
        ),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            "--predictions",
            metavar="[NAME=]FILE",
            help="Score another system's answers too: Parquet, CSV or JSON Lines with user_id (or example_id) and a "
            "list `items` of titles or ids, or item_id with rank or score; may be repeated.",
        ),
    ] = None,
    add_items: AddItemsOption = None,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    external = {"models": model, "predictions": predictions}
    settings = [f"evaluate.{key}=[{', '.join(map(quoted, found))}]" for key, found in external.items() if found]
    settings += [f"evaluate.add_items={quoted(add_items)}"] if add_items is not None else []
    run_named(resolve(out, config, [*settings, *(set_ or [])]), out, "evaluate", overwrite, debug)


@app.command("run")
@ends_clearly()
def run(
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """All stages in order, from the log to the report; what is up to date is passed over.

    Settings that are not given follow from the data, and are printed with the reason. run.budget=30m shares a time
    among the trainings; sweep.trials=4 sweeps before it aligns, and aligns with the best settings.

    Example: rosepo run --config jobs/configs/demo.yaml --out runs/demo
    """
    run_whole(resolve(out, config, set_, interactions, items), out, overwrite, debug)


app.command("recommend")(recommend)
app.command("merge")(merge)
app.command("report")(report)
app.command("compare")(compare)
app.command("experiments")(experiments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `rosepo` command."""
    interrupt_on_sigterm()
    app(args=list(arguments) if arguments is not None else None)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(rosepo.__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
