from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.recommend import recommend
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import load_recommender, save_policy
from rosepo.utils.errors import UserError
from tests.evaluation.runs import tiny_config, tiny_run
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer
from tests.lm.serving.model_server import STAND_IN


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of random weights."""
    return tiny_run(tmp_path_factory.mktemp("run")).sft


@pytest.fixture(scope="module")
def titles(model: Path) -> list[str]:
    """The model's titles."""
    return Catalogue.load(model / "catalogue.parquet").titles


def test_titles_from_the_command_line_match_whatever_their_case(
    model: Path, titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    history = [f"  {titles[3].upper()} ", str(100 + 5)]
    recommend(tiny_config("recommend.k=4"), str(model), history, None, None, True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["history"] == [titles[3], titles[5]]
    scores = [row["score"] for row in answer["recommendations"]]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert not {row["title"] for row in answer["recommendations"]} & {titles[3], titles[5]}


def test_a_model_that_is_served_recommends_the_same(
    model: Path, titles: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for engine in (["recommend.engine=transformers"], ["recommend.engine=vllm", f"recommend.vllm={STAND_IN}"]):
        recommend(tiny_config("recommend.k=4", *engine), str(model), titles[3:5], None, None, True)
        found.append(json.loads(capsys.readouterr().out)["recommendations"])
    assert [row["title"] for row in found[0]] == [row["title"] for row in found[1]]
    assert [row["score"] for row in found[0]] == pytest.approx([row["score"] for row in found[1]], abs=1e-3)


def test_the_table_lists_the_same_titles(model: Path, titles: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recommend(tiny_config("recommend.k=3"), str(model), [titles[0]], None, None, True)
    rows = json.loads(capsys.readouterr().out)["recommendations"]
    recommend(tiny_config("recommend.k=3"), str(model), [titles[0]], None, None, False)
    text = capsys.readouterr().out
    places = [text.index(row["title"]) for row in rows]
    assert places == sorted(places)


def test_an_unknown_title_is_answered_with_the_nearest(model: Path, titles: list[str]) -> None:
    with pytest.raises(UserError, match="the nearest titles are") as error:
        recommend(tiny_config(), str(model), [titles[7] + "x"], None, None, False)
    assert titles[7] in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_files_say_which_row_is_wrong(model: Path, titles: list[str], tmp_path: Path, kind: str) -> None:
    path = _write(tmp_path, kind, [[titles[0]], ["Nowhere to be found"]])
    with pytest.raises(UserError, match=r"row 2: 'Nowhere to be found'"):
        recommend(tiny_config(), str(model), [], str(path), None, False)


def test_a_file_is_answered_on_ray_as_one_by_one(
    ray_cluster: None, model: Path, titles: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = [[titles[i], titles[i + 1]] for i in range(7)]
    config = tiny_config(
        "recommend.k=3", "recommend.batch_size=2", "recommend.actors=2", "recommend.cpus_per_actor=0.5"
    )
    output = tmp_path / "answers.jsonl"
    recommend(config, str(model), [], str(_write(tmp_path, "jsonl", histories)), output, False)
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [answer["user_id"] for answer in answers] == list(range(7))
    assert [answer["history"] for answer in answers] == histories
    capsys.readouterr()
    recommend(config, str(model), histories[4], None, None, True)
    alone = json.loads(capsys.readouterr().out)["recommendations"]
    assert [row["title"] for row in alone] == [row["title"] for row in answers[4]["recommendations"]]


def test_bad_requests_are_refused_in_a_sentence(model: Path, titles: list[str], tmp_path: Path) -> None:
    config = tiny_config()
    for history, file, words in (
        ([], None, "either --history"),
        ([titles[0]], "x.jsonl", "not both"),
        ([], str(tmp_path / "none.jsonl"), "does not exist"),
        ([], str(tmp_path / "none.txt"), r"give a \.parquet"),
    ):
        with pytest.raises(UserError, match=words):
            recommend(config, str(model), history, file, None, False)
    with pytest.raises(UserError, match="does not exist"):
        recommend(config, str(tmp_path / "no-model"), [titles[0]], None, None, False)
    (tmp_path / "bad.csv").write_text("history\nTitle\n")
    with pytest.raises(UserError, match="not a JSON list"):
        recommend(config, str(model), [], str(tmp_path / "bad.csv"), None, False)
    (tmp_path / "columns.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match="no column 'history'"):
        recommend(config, str(model), [], str(tmp_path / "columns.csv"), None, False)


LETTERS = list("bcadefghijklmnopqrstuvwxyz0123456789!#$%&()*+-./:;<=>?@[]^_{|}~")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """New items, whose titles of one letter cost a model of random weights few tokens; and two that it has."""
    path = tmp_path_factory.mktemp("new") / "new.parquet"
    ids = [*range(900, 900 + len(LETTERS)), 103, 105]
    pq.write_table(pa.table({"item_id": ids, "title": [*LETTERS, "Another name", "Yet another"]}), path)
    return path


def _recommended(
    capsys: pytest.CaptureFixture[str], model: Path, history: list[str], *options: str, **asked: Any
) -> list[dict[str, Any]]:
    recommend(tiny_config(*options), str(model), history, None, None, True, **asked)
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["recommendations"]
    return rows


def _same(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same titles in the same order, with scores that differ by rounding at most."""
    assert [row["title"] for row in rows] == [row["title"] for row in expected]
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in expected], abs=2e-4)


def test_a_new_title_is_recommended_where_it_scores_best_and_the_others_keep_their_order(
    model: Path, titles: list[str], new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = ("recommend.k=100", "recommend.beams=100")
    answers = {title: _recommended(capsys, model, [title], *every, add_items=str(new)) for title in titles}
    liked, rows = next(answer for answer in answers.items() if answer[1][0]["title"] in LETTERS)
    before = _recommended(capsys, model, [liked], *every)
    assert rows[0]["item_id"] == 900 + LETTERS.index(rows[0]["title"])
    assert len(rows) == 29 + len(LETTERS)
    _same([row for row in rows if row["title"] not in LETTERS], before)
    only = _recommended(capsys, model, [liked], *every, add_items=str(new), only_new=True)
    _same(only, [row for row in rows if row["title"] in LETTERS])
    recommender = load_recommender(model)
    prompt = recommender.builder.prompt(np.array([titles.index(liked)]))[0]
    (token,) = recommender.tokenizer(rows[0]["title"], add_special_tokens=False)["input_ids"]
    ids = torch.from_numpy(np.append(prompt, token)[None].astype(np.int64))
    with torch.inference_mode():
        logps = recommender.model(input_ids=ids).logits.log_softmax(-1)[0]
    expected = float(logps[-2, token] + logps[-1, recommender.tokenizer.eos_token_id])
    assert rows[0]["score"] == pytest.approx(expected, abs=2e-4)


def test_a_new_item_may_stand_in_a_history_by_id_or_title(
    model: Path, titles: list[str], new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recommend(tiny_config("recommend.k=5"), str(model), ["900", " C ", titles[2]], None, None, True, str(new))
    told = capsys.readouterr()
    answer = json.loads(told.out)
    assert f"items added of {new}: {len(LETTERS)}; in the catalogue already: 2" in told.err
    assert answer["history"] == ["b", "c", titles[2]]
    recommended = {row["title"] for row in answer["recommendations"]}
    assert len(recommended) == 5
    assert not recommended & {"b", "c", titles[2]}
    assert [row["title"] for row in answer["recommendations"]] != [
        row["title"] for row in _recommended(capsys, model, [titles[2]], "recommend.k=5", add_items=str(new))
    ]
    with pytest.raises(UserError, match="'900' is neither a title nor an item id"):
        recommend(tiny_config(), str(model), ["900"], None, None, True)


def test_histories_of_a_file_are_answered_with_new_items_as_one_by_one(
    ray_cluster: None, model: Path, titles: list[str], new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    histories = [[titles[0], "c"], ["900"], [titles[4]]]
    options = ("recommend.k=4", "recommend.batch_size=2", "recommend.cpus_per_actor=0.5")
    output, file = tmp_path / "answers.jsonl", str(_write(tmp_path, "jsonl", histories))
    recommend(tiny_config(*options), str(model), [], file, output, False, str(new), only_new=True)
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [answer["history"] for answer in answers] == [[titles[0], "c"], ["b"], [titles[4]]]
    capsys.readouterr()
    for history, answer in zip(histories, answers, strict=True):
        alone = _recommended(capsys, model, history, *options, add_items=str(new), only_new=True)
        assert [row["title"] for row in alone] == [row["title"] for row in answer["recommendations"]]
        assert {row["title"] for row in alone} <= {*LETTERS}


def test_new_items_that_cannot_be_recommended_are_refused_before_an_answer(
    model: Path, titles: list[str], new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known.csv"
    known.write_text(f"item_id,title\n103,{titles[3]}\n")
    letters = tmp_path / "letters.csv"
    letters.write_text("item_id,title\nb7,The Lobster\n")
    whole = tmp_path / "whole"
    tokenizer = tiny_tokenizer(30, whole=True)
    bare = model_record(tiny_config("model.template={prefix: '', separator: '', end: ''}"), "sft")
    save_policy(whole, tiny_model(vocab_size=len(tokenizer)), tokenizer, tiny_catalogue(30), bare)
    for folder, asked, words in (
        (model, {"only_new": True}, "--only-new recommends what --add-items adds: give that too"),
        (model, {"add_items": str(known), "only_new": True}, "knows every item of --add-items .*known.csv"),
        (model, {"add_items": str(letters)}, r"--add-items=.*letters\.csv: item_id 'b7' is text"),
        (model, {"add_items": str(tmp_path / "none.csv")}, r"--add-items=.*none\.csv does not exist"),
        (whole, {"add_items": str(new)}, r"titles cannot be added to what .*whole recommends.*whole_titles=0"),
    ):
        with pytest.raises(UserError, match=words):
            recommend(tiny_config(), str(folder), [titles[0]], None, None, True, **asked)
        assert capsys.readouterr().out == ""
    same = _recommended(capsys, model, [titles[0]], add_items=str(known))
    assert same == _recommended(capsys, model, [titles[0]])


def _write(folder: Path, kind: str, histories: list[list[str]]) -> Path:
    path = folder / f"histories.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"history": histories, "user_id": list(range(len(histories)))}), path)
    elif kind == "jsonl":
        rows = [json.dumps({"user_id": user, "history": history}) for user, history in enumerate(histories)]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    else:
        rows = [
            f'{user},"{json.dumps(history).replace(chr(34), chr(34) * 2)}"' for user, history in enumerate(histories)
        ]
        path.write_text("user_id,history\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
