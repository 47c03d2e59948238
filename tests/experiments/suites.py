"""Small suites for tests: a log of forty users, models of one layer, settings under which a run takes seconds."""

from __future__ import annotations

from pathlib import Path

import yaml

from rosepo.config import dump_config
from tests.pipeline.test_whole_run import configure, write_log

SUITE = """
about: two losses on a small log
data:
  ring: {base: base.yaml, seeds: [0, 1]}
variants:
  dpo: {about: plain DPO, set: {align.loss: dpo}}
  cdpo: {like: dpo, set: {align.loss: cdpo, align.epsilon_value: 0.1}}
  more-negatives: {like: dpo, set: {pairs.negatives: 3}}
comparators: [sft, dpo]
contrasts:
  - {question: "Does smoothing help?", a: cdpo, b: dpo}
"""


def write_suite(folder: Path, text: str = SUITE, **base: dict[str, object]) -> Path:
    """A suite, its base configuration and the log that this reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder)
    config = configure(folder, sweep={"trials": 0, "parameters": None, "max_groups": None}, **base)
    (folder / "base.yaml").write_text(dump_config(config))
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


def changed(text: str, **more: object) -> str:
    """A suite's text with some keys replaced."""
    return yaml.safe_dump({**yaml.safe_load(text), **more}, sort_keys=False)
