"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show tracebacks, what libraries say, and the logs of Ray's workers.")
]
InteractionsOption = Annotated[
    str | None,
    typer.Option(
        "--interactions", help="User-item log: Parquet, CSV, TSV, JSON Lines, MovieLens .dat/.csv or RecBole .inter."
    ),
]
ItemsOption = Annotated[
    str | None, typer.Option("--items", help="Items with titles, in the same formats (RecBole: .item).")
]
AddItemsOption = Annotated[
    str | None,
    typer.Option(
        "--add-items",
        metavar="FILE",
        help="Items that came after training, in the same formats and columns as --items: they can be recommended too.",
    ),
]
