"""Model folders of older versions are read on: each brings its own template, lengths and catalogue.

`model_of_0_1_0` was written by `save_policy` of that version: a Llama of one layer with random weights, twelve titles.
Its answers below are those which `rosepo recommend` of that version gave.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from rosepo.cli.app import app
from rosepo.config import ModelConfig
from rosepo.data.catalogue import Catalogue
from rosepo.evaluation.external_models import load_external
from rosepo.lm.titles.beam_search import Decoder

FOLDER = Path(__file__).parent / "model_of_0_1_0"
HISTORY = "Night (1980)"
ANSWERS = {101: -10.773, 102: -17.3708, 103: -22.2909}


def test_a_model_of_an_older_version_recommends_what_it_did() -> None:
    options = ["--model", str(FOLDER), "--history", HISTORY, "--set", "recommend.k=3", "--json"]
    result = CliRunner().invoke(app, ["recommend", *options])
    assert result.exit_code == 0, result.output
    answers = json.loads(result.stdout)["recommendations"]
    assert {answer["item_id"]: answer["score"] for answer in answers} == pytest.approx(ANSWERS, abs=1e-3)


def test_a_model_of_an_older_version_is_evaluated_beside_others() -> None:
    catalogue = Catalogue.load(FOLDER / "catalogue.parquet")
    recommender = load_external(str(FOLDER), catalogue, ModelConfig(), max_history=20)
    assert (recommender.builder.max_length, recommender.max_history) == (96, 5)
    seen = np.array([catalogue.titles.index(HISTORY)])
    decoder = Decoder(recommender.model, recommender.builder, 20)
    items, scores = decoder.top_k([recommender.builder.prompt(seen)[0]], [seen], 3)
    assert catalogue.item_ids[items[0]].tolist() == [*ANSWERS]
    np.testing.assert_allclose(scores[0], [*ANSWERS.values()], atol=1e-3)
