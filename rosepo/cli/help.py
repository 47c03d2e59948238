"""What `rosepo COMMAND --help` says of a stage: what it does, and its settings, read from the configuration itself."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from rosepo.config import LOSSES, STRATEGIES, Config, Section
from rosepo.config.strategies import ASKED

_HELP = {
    "prepare": """Filter the log, split it, and write the table of examples.

    Keeps positives (prepare.min_rating), a k-core, the order in time; splits by leave_one_out or temporal; every prefix
    of a user's sequence becomes an example (history → next title). Prints what was dropped and why.

    Example: rosepo prepare --interactions ratings.dat --items movies.dat --set prepare.min_rating=4 --out runs/ml
    """,
    "sft": """Fine-tune the language model to continue a history with the next title.

    The model is model.path (hub id or folder, with model.lora for adapters) or, without one, a small Llama from scratch
    with a tokenizer trained on the catalogue, whose settings follow from the data where they are not given. Writes a
    Hugging Face folder: the policy, and later the reference.

    Example: rosepo sft --set model.path=Qwen/Qwen3-1.7B --set model.lora.rank=16 --set sft.workers=4 --out runs/ml
    """,
    "oracle": """Fit the preference oracle: SASRec over the full catalogue, or one of your own.

    Its scores say how likely a user prefers the chosen title to a rejected one: from that comes a pair's smoothing ε.
    SASRec stops early on validation and reports HR@10 and NDCG@10. A scorer of your own (oracle.kind=scorer) is checked
    and calibrated; nothing is trained.

    Example: rosepo oracle --set 'oracle={kind: scorer, scorer: my_scorer:make}' --out runs/ml --overwrite
    """,
    "pairs": """Build preference groups: prompt, chosen title, K rejected titles, ε and reference log-probabilities.

    Rejected titles come from the strategies listed below, mixed by pairs.strategies: by default the model's own wrong
    answers, look-alikes of the history and popular titles, in equal parts. Runs as Ray Data actors (pairs.actors). With
    pairs.rounds above 1, --round 2 samples from the model that the first round aligned, --round 3 from the second's,
    and so on.
    """,
    "align": """Align the SFT model with the groups by the smoothed preference objective, or by one of its rivals.

    align.beta ties the model to its reference; align.loss is softmax, pairwise, a rival or a control, listed below.
    Under pairwise, align.epsilon takes the smoothing from the oracle or from a control (constant, shuffled, zero or
    spa), and align.epsilon_max bounds it (0 is DPO). A setting that the loss does not use is refused. The defaults suit
    a model that was pretrained; a small one from scratch learns at align.learning_rate=1e-3. --round 2 goes on from the
    model of the first round, on the groups of the second, and so on. With pairs.stream=true, groups that are not there
    are sampled meanwhile: training takes them while they are made.

    Example: rosepo align --set align.beta=0.5 --out runs/ml --overwrite
    """,
    "sweep": """Search alignment settings with Ray Tune on the same groups, those of the first round.

    sweep.parameters maps keys of align.* to lists or ranges. Every trial is measured on validation examples; the best
    configuration is written to sweep/best.yaml, ready for `rosepo align --config`. `rosepo run` sweeps by itself where
    sweep.trials is set, and aligns with the best settings.
    """,
    "evaluate": """Rank the whole catalogue for every test example: metrics.json, and the report that is drawn of it.

    Most-popular, Markov, the oracle, the SFT model and the aligned model on the same examples, with 95 % intervals.
    Models and systems that are not the run's own are measured beside them by --model and --predictions; a run that is
    only prepared is enough for that. With --add-items titles compete too that came after training, as far as models can
    spell them. A run that was ended goes on where it was. `rosepo report` draws the page again.

    Example: rosepo evaluate --out runs/ml --model Qwen/Qwen3-1.7B --predictions bpr=bpr-top20.csv --overwrite
    """,
}


_BESIDE = {"prepare": "data", "sft": "model"}
"""A section that a stage has beside the one of its name."""


def stage_help(name: str) -> str:
    """A command's help: what it does, then its settings with their defaults, read from the configuration itself."""
    paragraphs = [inspect.cleandoc(_HELP[name])]
    for section in filter(None, (_BESIDE.get(name), name)):
        model = Config.model_fields[section].annotation
        assert isinstance(model, type)
        assert issubclass(model, Section)
        lines = [_setting(key, field) for key, field in model.model_fields.items()]
        lines += [_line(key, found.kind, found.default, found.about) for key, found in model.options().items()]
        paragraphs.append("\b\n" + "\n".join([f"Settings (--set {section}.KEY=VALUE), with their defaults:", *lines]))
    if name in _TABLES:
        paragraphs.append("\b\n" + "\n".join(_TABLES[name]()))
    return "\n\n".join(paragraphs)


def _losses() -> list[str]:
    head = "Losses (--set align.loss=NAME), and the settings that not all of them take:"
    return [head, *(_entry(name, loss.described, loss.settings) for name, loss in LOSSES.items())]


def _strategies() -> list[str]:
    lines = ["Strategies (--set pairs.strategies.NAME=WEIGHT), and the settings of each:"]
    for name, entry in STRATEGIES.items():
        asks = f"; asks for {', '.join(ASKED[what] for what in entry.asks)}" if entry.asks else ""
        lines.append(_entry(name, entry.described + asks, entry.keys))
    return lines


def _entry(name: str, described: str, keys: Sequence[str]) -> str:
    return _wrapped(f"  {name}  {described}{': ' if keys else ''}{', '.join(keys)}")


_TABLES = {"align": _losses, "pairs": _strategies}


def _setting(key: str, field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    parts = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
    nested = next((part for part in parts if issubclass(part, Section)), None)
    doc = " ".join((field.description or (nested.__doc__ if nested else None) or "").split())
    if nested is not None and (default is None or isinstance(default, Section)):
        keys = ", ".join(f"{name}={_plain(inner.get_default())}" for name, inner in nested.model_fields.items())
        return _wrapped(f"  {key}.*  {doc} {'Unset; its keys' if default is None else 'Keys'}: {keys}")
    return _line(key, field.annotation, default, doc)


def _line(key: str, kind: Any, default: Any, doc: str) -> str:
    choices = next((get_args(part) for part in (kind, *get_args(kind)) if get_origin(part) is Literal), ())
    doc = f"{'|'.join(choices)}. {doc}" if choices and all(isinstance(choice, str) for choice in choices) else doc
    return _wrapped(f"  {key}={_plain(default)}  {doc}")


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, width=78, subsequent_indent=" " * 6))


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value is None or isinstance(value, (bool, str)) else str(value)
