"""Commands beside the stages: answers for histories, pages of one run and of several, suites of experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rosepo.cli.exit_codes import ends_clearly
from rosepo.cli.options import AddItemsOption, ConfigOption, DebugOption, OutOption, OverwriteOption, SetOption
from rosepo.cli.run_stages import check_job, resolve
from rosepo.config import Config
from rosepo.run.manifest import read_manifest
from rosepo.run.paths import RunPaths
from rosepo.utils.console import echo
from rosepo.utils.errors import UserError


@ends_clearly(keeps_log=False)
def recommend(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model folder that rosepo wrote, e.g. runs/demo/aligned.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of a run, instead of --model: its newest model answers.")
    ] = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", help="A title that the user liked, oldest first; may be repeated.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Many histories: Parquet, CSV or JSON Lines with a column `history`.")
    ] = None,
    add_items: AddItemsOption = None,
    only_new: Annotated[
        bool, typer.Option("--only-new", help="Recommend what --add-items adds, and nothing else.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write JSON Lines there instead of stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """The best titles for a history, with scores (log-probability of the title).

    Example: rosepo recommend --out runs/demo --history "Iron Man 3 (2013)" --history "Man of Steel (2013)"
    """
    from rosepo.config import load_config
    from rosepo.evaluation.recommend import recommend as answer

    settings = resolve(out, config, set_) if out is not None else load_config(config, set_ or [])
    answer(settings, _model_of(settings, model, out), history or [], file, output, as_json, add_items, only_new)


@ends_clearly(keeps_log=False)
def merge(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Folder or hub id of an adapter, e.g. runs/qwen/aligned.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write the whole model to; it must not exist.")],
    debug: DebugOption = False,
) -> None:
    """Write an adapter into its base: a whole model in the base's precision, for programs that know no adapters.

    Example: rosepo merge --model runs/qwen/aligned --output models/qwen-movies
    """
    from rosepo.lm.model.merge import merge_adapter
    from rosepo.run.folders import replacing

    if output.exists():
        raise UserError(f"--output {output} exists: name a new folder")
    with replacing(output) as aside:
        figures = merge_adapter(model, aside)
    echo(
        f"  Model  {output}  ({figures['parameters']:,} parameters, {figures['dtype']}; its base was {figures['base']})"
    )


@ends_clearly(keeps_log=False)
def report(out: OutOption, debug: DebugOption = False) -> None:
    """Draw report.html and report.md of a run again, from what it measured; nothing is ranked or trained again.

    Example: rosepo report --out runs/demo
    """
    from rosepo.pipeline.runner import draw_report

    echo(f"  Report  {draw_report(resolve(out, None), out)}")


@ends_clearly(keeps_log=False)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUNS...", help="Folders of runs that were evaluated, two at least.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write; Markdown goes beside it.")] = Path(
        "compare.html"
    ),
    base: Annotated[
        Path | None, typer.Option("--base", help="The run that others are held against; without it, the first.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """One page of several runs: accuracy, bias, cost, the settings that differ, and paired differences.

    Runs that measured the same examples are compared on the same draws of users; of others the intervals stand alone.

    Example: rosepo compare runs/dpo runs/rosepo --out compare.html
    """
    from rosepo.report.compare import compare as write

    write(runs, out, base)


@ends_clearly()
def experiments(
    suites: Annotated[list[Path], typer.Argument(help="Files of suites, as in jobs/configs/experiments/.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of all runs: DATA/seed-SEED/VARIANT in it.")],
    only: Annotated[list[str] | None, typer.Option("--only", help="A variant to make; may be repeated.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", help="A data set to use; may be repeated.")] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="Seeds instead of the suites', as in 0,1,2.")] = None,
    test: Annotated[
        bool, typer.Option("--test", help="Evaluate on the test split too, where suites ask for it.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="[DATA:]SECTION.KEY=VALUE",
            help="Override one setting in every run, or in those of one data set; may be repeated.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made and shared, and how long.")
    ] = False,
    tables: Annotated[bool, typer.Option("--tables", help="Make the tables of what is finished, and no run.")] = False,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    """Make all runs of suites of experiments, and their tables; what is finished is passed over.

    A suite names variants of a base configuration, data sets and seeds. Every run is an ordinary run's folder,
    evaluated on validation; stages that runs have in common are made once. A run that fails is told and recorded, and
    the others go on. Writes results.md and results.json in --out: figures, costs, paired intervals over users.

    Example: rosepo experiments jobs/configs/experiments/essential.yaml --out runs/experiments --dry-run
    """
    from rosepo.experiments.command import Chosen
    from rosepo.experiments.command import experiments as make

    check_job(out)
    chosen = Chosen(only or [], data or [], _numbers(seeds), test)
    make(suites, out, chosen, set_ or [], overwrite=overwrite, dry_run=dry_run, tables=tables)


def _model_of(config: Config, model: str | None, out: Path | None) -> str:
    if model is not None and out is not None:
        raise UserError(f"--model {model} and --out {out} both name a model: give one of them")
    if model is not None:
        return model
    if out is None:
        raise UserError("which model is to answer? Give --out FOLDER of a run, or --model FOLDER")
    newest_first = [outputs.aligned for outputs in reversed(RunPaths(out, config.pairs.rounds).rounds)]
    found = next((folder for folder in (*newest_first, out / "sft") if folder.is_dir()), None)
    if found is None:
        raise UserError(f"--out {out} holds no model (aligned/ or sft/): run `rosepo run --out {out}` first")
    read_manifest(found, f"give --model {found}, or `rosepo run --overwrite` to make the run again")
    return str(found)


def _numbers(text: str | None) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise UserError(f"--seeds {text} is not a list of numbers: write 0,1,2") from None
