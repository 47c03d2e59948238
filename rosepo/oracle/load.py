"""The folder of the `oracle` stage: which kind of oracle it holds, and that oracle, ready to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosepo.data.catalogue import Catalogue
from rosepo.oracle.crossfit import CrossFitted
from rosepo.oracle.external_oracle import ImportedScorer
from rosepo.oracle.protocol import Scorer
from rosepo.oracle.sasrec import catalogue_digest
from rosepo.utils.errors import UserError
from rosepo.utils.files import write_json

if TYPE_CHECKING:
    import torch

ABOUT_FILE = "oracle.json"
"""Says which kind of oracle a folder holds; a folder without one is SASRec's."""
KINDS = ("sasrec", "scorer")


def write_kind(folder: Path, kind: str, **about: Any) -> None:
    """Say in `oracle.json` which kind of oracle the folder holds, and what `load_scorer` must know of it."""
    write_json(folder / ABOUT_FILE, {"kind": kind, **about})


def read_kind(folder: Path) -> dict[str, Any]:
    """What `write_kind` wrote; kind `sasrec` where there is none.

    Raises:
        UserError: a file that cannot be read, or that names none of `KINDS`.
    """
    try:
        about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"kind": "sasrec"}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / ABOUT_FILE} cannot be read ({error}): run `rosepo oracle --overwrite`") from error
    kind = about.get("kind") if isinstance(about, dict) else None
    if kind not in KINDS:
        raise UserError(
            f"{folder / ABOUT_FILE} names the kind of oracle {kind!r}, and known are {' and '.join(KINDS)}: run "
            "`rosepo oracle --overwrite` (a scorer can read a table of scores: docs/method.md, 'An oracle of your own')"
        )
    return {**about, "kind": kind}


def load_scorer(folder: Path, catalogue: Catalogue, device: str | torch.device = "cpu") -> Scorer:
    """The oracle that `rosepo oracle` left in a folder.

    Args:
        catalogue: the items that shall be scored.
        device: of SASRec; a scorer of the user's own sees to that itself.

    Raises:
        UserError: no oracle there, one of another catalogue, or a scorer that cannot be made.
    """
    about = read_kind(folder)
    if about["kind"] == "sasrec":
        return CrossFitted.load(folder, catalogue.item_ids, device)
    if about.get("catalogue_digest") != catalogue_digest(catalogue.item_ids):
        raise UserError(f"the oracle in {folder} was made for another catalogue: run `rosepo oracle` again")
    return ImportedScorer.make(about["scorer"], catalogue, about["tau"])
