"""What titles that came after training are worth: a share of a log's items is held out, and added again by --add-items.

The items are chosen by a hash of their ids among those that `prepare` keeps. Their interactions are taken out of the
log, a model is fine-tuned on the rest (with --align the whole pipeline runs), and then
- the run is evaluated with and without the items that were held out: what they cost the targets that there are;
- whoever chose one of them as their last title, or the one before, is asked for from what they had chosen until then
  (`rosepo recommend --add-items`): how often it is among the first ten of all titles, and of the new ones alone.
Beside the models stand chance and the titles that look most like the history (TF-IDF of words and categories). A second
table says how many of the new titles have tokens that no other title has, by the size of a vocabulary from scratch.

    python benchmarks/new_items.py --out runs/new-items [--align] [--config FILE] [--share 0.05] [--set KEY=VALUE]

What is finished in --out is not made again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rosepo.config import Config, ScratchConfig, TemplateConfig, load_config
from rosepo.data.added_items import with_items
from rosepo.data.catalogue import ITEMS_FILE, Catalogue
from rosepo.data.prompts import PromptBuilder
from rosepo.data.random import example_keys, uniforms
from rosepo.data.readers.interactions import interaction_tables, plan_reading, read_items
from rosepo.evaluation.baselines import top_k
from rosepo.evaluation.measured_examples import EXAMPLES_FILE, read_batches, user_codes, write_examples
from rosepo.evaluation.rankings import DEPTH, RANKINGS_FOLDER, read_rankings
from rosepo.lm.model.added_titles import strange_titles
from rosepo.lm.model.scratch import train_tokenizer
from rosepo.lm.titles.title_embeddings import encode_titles, history_similarity
from rosepo.metrics.bootstrap import Estimate, UserBootstrap
from rosepo.metrics.ranking import hit_ratio, ndcg
from rosepo.run.paths import RunPaths

SPELLED = ("model.scratch.whole_titles=0", "model.scratch.vocab_size=1024")
"""Settings of a model from scratch that can spell a title."""
K = 10
VOCABULARIES = (1024, 2048, 4096, 8192)


@dataclass(frozen=True)
class NewTargets:
    """Examples whose targets were held out.

    Attributes:
        users: [N].
        histories: item ids that were chosen before, oldest first, those that nobody can rank left out.
        targets: item ids.
    """

    users: list[object]
    histories: list[list[object]]
    targets: list[object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parents[1] / "jobs/configs/demo.yaml")
    parser.add_argument("--share", type=float, default=0.05, help="of the items that are held out")
    parser.add_argument("--set", action="append", default=list(SPELLED), metavar="SECTION.KEY=VALUE")
    parser.add_argument("--align", action="store_true", help="measure the aligned model too")
    asked = parser.parse_args()
    config, out = load_config(asked.config, asked.set), asked.out
    options = [option for setting in asked.set for option in ("--set", setting)]
    if not (out / "full" / "examples").is_dir():
        rosepo("prepare", "--config", asked.config, "--out", out / "full", *options)
    held = hold_out(config, out, asked.share)
    if not (out / "before").is_dir():
        files = ("--interactions", out / "interactions.parquet", "--items", out / "items.parquet")
        made = ("--config", asked.config, "--out", out / "run", "--set", "data.dataset=null", *options)
        rosepo("run" if asked.align else "prepare", *made, *files)
        for stage in () if asked.align else ("sft", "evaluate"):
            rosepo(stage, "--out", out / "run")
        shutil.copytree(out / "run" / "evaluation", out / "before")
    rosepo("evaluate", "--out", out / "run", "--add-items", out / "new.parquet", "--overwrite")
    models = [name for name in ("sft", "aligned") if (out / "run" / name).is_dir()]
    own = Catalogue.load(out / "run" / "examples" / ITEMS_FILE)
    catalogue, _ = with_items(own, config, str(out / "new.parquet"), "new items")
    asking = new_targets(RunPaths(out / "full").examples, held, catalogue, out)
    print(f"\n{len(own):,} titles, {catalogue.added} new; {len(asking.targets):,} targets among the new\n")
    print(table([*of_old_targets(out, models), *of_new_targets(asking, catalogue, out, models)]))
    print(f"\n{vocabularies(catalogue)}")


def rosepo(*arguments: object) -> None:
    """Run a command of rosepo, which says itself how it gets on."""
    subprocess.run([sys.executable, "-m", "rosepo", *map(str, arguments)], check=True)


def hold_out(config: Config, out: Path, share: float) -> set[object]:
    """Write the log and the items without those that are held out, and these as `new.parquet`; their ids."""
    ids = Catalogue.load(RunPaths(out / "full").examples / ITEMS_FILE).item_ids
    drawn = uniforms(example_keys([str(item) for item in ids.tolist()]), config.seed, "held out", 0)
    held = ids[drawn < share].tolist()
    plan = plan_reading(config.data, "interactions")
    log = pa.concat_tables(table for number, piece in plan.pieces for table in interaction_tables(plan, number, piece))
    items = read_items(config.data)
    for name, rows in (("interactions", log.drop_columns(["row"])), ("items", items)):
        inside = pa.array(np.isin(rows["item_id"].to_numpy(zero_copy_only=False), held))
        pq.write_table(rows.filter(pa.array(~inside.to_numpy(zero_copy_only=False))), out / f"{name}.parquet")
        if name == "items":
            pq.write_table(rows.filter(inside), out / "new.parquet")
    return set(held)


def new_targets(examples: Path, held: set[object], catalogue: Catalogue, out: Path) -> NewTargets:
    """The examples of the whole log, of test and validation, whose targets are among those that were held out."""
    known, full = set(catalogue.item_ids.tolist()), Catalogue.load(examples / ITEMS_FILE).item_ids
    found = NewTargets([], [], [])
    for split in ("validation", "test"):
        write_examples(examples, split, None, 256, out / f"{split}.parquet")
        for batch in read_batches(out / f"{split}.parquet"):
            for user, seen, target in zip(batch.users.to_pylist(), batch.seen, full[batch.targets].tolist()):
                history = [item for item in full[seen].tolist() if item in known]
                if target in held and history:
                    found.users.append(user)
                    found.histories.append(history)
                    found.targets.append(target)
    return found


def of_old_targets(out: Path, models: Sequence[str]) -> list[tuple[str, dict[str, Estimate]]]:
    """Accuracy of the run's own examples without and with the new titles, and the paired difference."""
    folders = {"without": out / "before", "with": out / "run" / "evaluation"}
    series = {}
    for (when, folder), model in ((one, model) for one in folders.items() for model in models):
        ranks, _ = read_rankings(folder / RANKINGS_FOLDER / f"{model}.parquet")
        series |= {("HR@10", when, model): hit_ratio(ranks, K), ("NDCG@10", when, model): ndcg(ranks, K)}
    drawn = UserBootstrap(user_codes(out / "before" / EXAMPLES_FILE), 1000, 0).resample(series)
    rows = []
    for metric in ("HR@10", "NDCG@10"):
        told = f"old targets, {metric}"
        for when in folders:
            means = {model: drawn.mean((metric, when, model)) for model in models}
            rows.append((f"{told}, {when} the new titles", means))
        change = {model: drawn.difference((metric, "with", model), (metric, "without", model)) for model in models}
        rows.append((f"{told}, difference", change))
    return rows


def of_new_targets(
    asking: NewTargets, catalogue: Catalogue, out: Path, models: Sequence[str]
) -> list[tuple[str, dict[str, Estimate]]]:
    """How often the new targets are found, among all titles and among the new ones alone."""
    lines = [json.dumps({"user_id": n, "history": history}) for n, history in enumerate(asking.histories)]
    (out / "histories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = []
    for told, alone in (("all titles", False), ("the new titles alone", True)):
        ranks = {model: _asked(asking, out, model, alone) for model in models}
        ranks["look-alikes"] = _look_alikes(asking, catalogue, alone)
        left = catalogue.added if alone else np.array([len(catalogue) - len(history) for history in asking.histories])
        series = {name: hit_ratio(found, K) for name, found in ranks.items()}
        series["chance"] = np.broadcast_to(K / left, len(asking.targets)).astype(np.float64)
        drawn = UserBootstrap(np.unique(asking.users, return_inverse=True)[1], 1000, 0).resample(series)
        rows.append((f"new targets, HR@10 among {told}", {name: drawn.mean(name) for name in series}))
    return rows


def _asked(asking: NewTargets, out: Path, model: str, alone: bool) -> np.ndarray:
    """The rank of every target among what `rosepo recommend` answers, int64 [N], -1 for a miss."""
    answers = out / f"answers-{model}{'-alone' if alone else ''}.jsonl"
    rosepo("recommend", "--model", out / "run" / model, "--file", out / "histories.jsonl", "--output", answers,
           "--add-items", out / "new.parquet", *(["--only-new"] if alone else []), "--set", f"recommend.k={DEPTH}",
           "--set", "recommend.batch_size=256")  # fmt: skip
    ranks = []
    for line, target in zip(answers.read_text(encoding="utf-8").splitlines(), asking.targets, strict=True):
        ids = [row["item_id"] for row in json.loads(line)["recommendations"]]
        ranks.append(ids.index(target) if target in ids else -1)
    return np.array(ranks)


def _look_alikes(asking: NewTargets, catalogue: Catalogue, alone: bool) -> np.ndarray:
    """The same by likeness to the newest titles of the history, decaying by half with every older one."""
    index = {item: place for place, item in enumerate(catalogue.item_ids.tolist())}
    histories = [np.array([index[item] for item in history]) for history in asking.histories]
    vectors = encode_titles("tfidf", catalogue, Path())
    scores = history_similarity(vectors, histories, 0.5) @ vectors.T
    own = np.arange(len(catalogue) - catalogue.added if alone else 0)
    items, _ = top_k(scores, [np.concatenate([history, own]) for history in histories], DEPTH)
    found = items == np.array([index[target] for target in asking.targets])[:, None]
    return np.where(found.any(axis=1), found.argmax(axis=1), -1)


def vocabularies(catalogue: Catalogue) -> str:
    """Markdown: how titles are spelled by vocabularies that are trained on those that are not new."""
    own = catalogue.own
    lines = ["| tokens | of a title | of a new title | new titles with tokens that no other has |", "|---|---|---|---|"]
    for size in VOCABULARIES:
        tokenizer = train_tokenizer(own.titles, own.train_count, ScratchConfig(vocab_size=size))
        builder = PromptBuilder(tokenizer, catalogue.titles, TemplateConfig(), max_length=4096)
        means = (builder.lengths[: len(own)].mean(), builder.lengths[len(own) :].mean())
        cells = [f"{size:,}", *(f"{mean:.1f}" for mean in means), str(strange_titles(builder, catalogue.added))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def table(rows: Sequence[tuple[str, Mapping[str, Estimate]]]) -> str:
    """Markdown, with intervals of 95 %."""
    names = list(dict.fromkeys(name for _, found in rows for name in found))
    lines = ["| | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for told, found in rows:
        cells = [_cell(found[name]) if name in found else "" for name in names]
        lines.append(f"| {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(one: Estimate) -> str:
    value, low, high = (_number(number) for number in (one.value, one.low, one.high))
    return value if low == high else f"{value} [{low}, {high}]"


def _number(number: float) -> str:
    return f"{number:.3f}".replace("0.", ".", 1).replace("-", "−")


if __name__ == "__main__":
    main()
