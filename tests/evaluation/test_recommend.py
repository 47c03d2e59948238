from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.recommend import recommend
from rosepo.utils.errors import UserError
from tests.evaluation.runs import tiny_config, tiny_run


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
