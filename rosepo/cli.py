"""The command line. Stages take ``--config``, ``--out``, ``--set``; nothing heavy is imported before it is needed."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import rosepo
from rosepo.artifacts import Outputs, of_round
from rosepo.cli_help import stage_help
from rosepo.config import Config
from rosepo.console import say
from rosepo.errors import StageError, UserError

EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130
_JOB_COPY = "working_dir_files"
"""Folder in which Ray unpacks what `ray job submit --working-dir` sent."""

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
        "The stages: prepare → sft, oracle → pairs → align (→ sweep) → evaluate. Each command runs one of them on the "
        "same --out folder; `run` does them all and passes over what is up to date."
    ),
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="YAML file with the settings. Without it: the one kept in --out, else the defaults."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run; every stage has a folder in it.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting; may be repeated. Value as in YAML."
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Make outputs again that another configuration made (otherwise refused).")
]
RoundOption = Annotated[
    int,
    typer.Option("--round", min=1, help="Which of the pairs.rounds; rounds after the first have folders of theirs."),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the logs of Ray's workers.")]
InteractionsOption = Annotated[
    str | None,
    typer.Option(
        "--interactions", help="User-item log: Parquet, CSV, TSV, JSON Lines, MovieLens .dat/.csv or RecBole .inter."
    ),
]
ItemsOption = Annotated[
    str | None, typer.Option("--items", help="Items with titles, in the same formats (RecBole: .item).")
]


def _stage_command(name: str) -> None:
    def command(
        out: OutOption,
        config: ConfigOption = None,
        set_: SetOption = None,
        overwrite: OverwriteOption = False,
        debug: DebugOption = False,
    ) -> None:
        _guard(lambda: _run(out, config, set_ or [], [name], overwrite, debug), debug)

    app.command(name, help=stage_help(name))(command)


def _round_command(name: str) -> None:
    def command(
        out: OutOption,
        config: ConfigOption = None,
        set_: SetOption = None,
        round: RoundOption = 1,
        overwrite: OverwriteOption = False,
        debug: DebugOption = False,
    ) -> None:
        _guard(lambda: _run(out, config, set_ or [], [of_round(name, round)], overwrite, debug), debug)

    app.command(name, help=stage_help(name))(command)


@app.command("check")
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
    debug: DebugOption = False,
) -> None:
    """Everything that can be known before training, without side effects.

    Reads the configuration and the files, counts what the filters would keep, measures token lengths, compares the
    resources asked for with the cluster's, and estimates steps and memory.
    """

    def work() -> None:
        from rosepo.check import check_groups, run_check

        if groups is not None:
            check_groups(groups)
            return
        run_check(_resolve(out, config, set_ or [], interactions, items), out)

    _guard(work, debug)


@app.command("prepare", help=stage_help("prepare"))
def prepare(
    out: OutOption,
    config: ConfigOption = None,
    set_: SetOption = None,
    interactions: InteractionsOption = None,
    items: ItemsOption = None,
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    _guard(lambda: _run(out, config, set_ or [], ["prepare"], overwrite, debug, interactions, items), debug)


for _name in ("sft", "oracle", "pairs", "align", "sweep"):
    (_round_command if _name in ("pairs", "align") else _stage_command)(_name)


@app.command("evaluate", help=stage_help("evaluate"))
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
    overwrite: OverwriteOption = False,
    debug: DebugOption = False,
) -> None:
    def work() -> None:
        given = {"models": model, "predictions": predictions}
        settings = [f"evaluate.{key}=[{', '.join(map(_quote, found))}]" for key, found in given.items() if found]
        _run(out, config, [*settings, *(set_ or [])], ["evaluate"], overwrite, debug)

    _guard(work, debug)


@app.command("run")
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

    Example: rosepo run --config jobs/configs/demo.yaml --out runs/demo
    """

    def work() -> None:
        from rosepo.refusals import check_before_run
        from rosepo.stages import stages_of
        from rosepo.summary import print_summary

        settings = _resolve(out, config, set_ or [], interactions, items)
        check_before_run(settings)
        names = [name for name in stages_of(settings) if name != "sweep" or settings.sweep.trials > 0]
        _run_stages(settings, out, names, overwrite, debug)
        print_summary(settings, out)

    _guard(work, debug)


@app.command("recommend")
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
    output: Annotated[Path | None, typer.Option("--output", help="Write JSON Lines there instead of stdout.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines instead of a table.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """The best titles for a history, with scores (log-probability of the title).

    Example: rosepo recommend --out runs/demo --history "Gravity (2013)" --history "Her (2013)" --set recommend.k=5
    """

    def work() -> None:
        from rosepo.config import load_config
        from rosepo.evaluation.recommend import recommend as answer

        settings = _resolve(out, config, set_ or []) if out is not None else load_config(config, set_ or [])
        answer(settings, _model_of(settings, model, out), history or [], file, output, as_json)

    _guard(work, debug)


def _model_of(config: Config, model: str | None, out: Path | None) -> str:
    if model is not None and out is not None:
        raise UserError(f"--model {model} and --out {out} both name a model: give one of them")
    if model is not None:
        return model
    if out is None:
        raise UserError("which model is to answer? Give --out FOLDER of a run, or --model FOLDER")
    newest_first = [outputs.aligned for outputs in reversed(Outputs(out, config.pairs.rounds).rounds)]
    found = next((folder for folder in (*newest_first, out / "sft") if folder.is_dir()), None)
    if found is None:
        raise UserError(f"--out {out} holds no model (aligned/ or sft/): run `rosepo run --out {out}` first")
    return str(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `rosepo` command."""
    # `ray job stop` and cluster managers send SIGTERM: take the same clean way out as Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    app(args=list(arguments) if arguments is not None else None)


def _resolve(
    out: Path, config: Path | None, overrides: Sequence[str], interactions: str | None = None, items: str | None = None
) -> Config:
    from rosepo.pipeline import resolve_config

    files = [f"data.{k}={_quote(v)}" for k, v in (("interactions", interactions), ("items", items)) if v is not None]
    return resolve_config(out, config, [*files, *overrides])


def _quote(text: str) -> str:
    import yaml

    return yaml.safe_dump(text, default_style='"').strip()


def _run(
    out: Path,
    config: Path | None,
    overrides: Sequence[str],
    names: Sequence[str],
    overwrite: bool,
    debug: bool,
    interactions: str | None = None,
    items: str | None = None,
) -> None:
    from rosepo.summary import print_next

    settings = _resolve(out, config, overrides, interactions, items)
    _run_stages(settings, out, names, overwrite, debug)
    print_next(settings, out, names[-1])


def _run_stages(config: Config, out: Path, names: Sequence[str], overwrite: bool, debug: bool) -> None:
    from rosepo.pipeline import plan_stages, run_stages, with_streamed
    from rosepo.refusals import check_named, check_resources
    from rosepo.session import ray_session

    if not out.is_absolute() and _JOB_COPY in Path.cwd().parts:
        raise UserError(
            f"--out {out} is relative, and a Ray job runs in a copy of the submitted folder that Ray removes: "
            "give an absolute path that every node sees"
        )
    names = with_streamed(config, out, names)
    check_named(config, names)
    # Refusals come before Ray is started; run_stages plans again, on the same folder.
    if all(plan.state == "done" for plan in plan_stages(config, out, names, overwrite)):
        run_stages(config, out, names, overwrite)
        return
    with ray_session(config.ray, debug):
        check_resources(config, names)
        run_stages(config, out, names, overwrite)


def _guard(work: Callable[[], Any], debug: bool) -> None:
    """Run a command; turn its failures into one clear line and an exit code (0 done, 2 bad input, 1 failed)."""
    try:
        work()
    except (UserError, StageError) as error:
        if debug:
            raise
        say(f"error: {error}")
        sys.exit(EXIT_BAD_INPUT if isinstance(error, UserError) else EXIT_FAILED)
    except KeyboardInterrupt:
        say("interrupted: no stage was left half-written; run the same command again to go on")
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        say(f"error: {_headline(error)} (--debug shows where)")
        sys.exit(EXIT_FAILED)


def _headline(error: BaseException) -> str:
    """The cause behind the wrapping that Ray puts around it, in one line."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        cause = getattr(error, "cause", None) or error.__cause__
        if not isinstance(cause, BaseException):
            break
        error = cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Where only text came back from another process, the line that names the error stands last but one, or last.
    told = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    return f"{type(error).__name__}: {(told or lines or ['no message'])[0]}"


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if version:
        print(rosepo.__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
