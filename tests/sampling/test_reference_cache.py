"""The cache of reference log-probabilities: what it finds again, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rosepo.config import parse_config
from rosepo.lm.cards.record import model_record
from rosepo.lm.model.model_folder import SETTINGS, save_policy
from rosepo.sampling.reference_cache import ReferenceCache, open_cache, reference_key
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

IDS = np.array(["1:2", "1:3"], dtype=object)
PROMPTS = [np.array([1, 5, 6], dtype=np.int32), np.array([1, 5], dtype=np.int32)]
COMPLETIONS = [[np.array([7, 2]), np.array([8, 2])], [np.array([9, 9, 2]), np.array([7, 2])]]
LOGPS = np.array([[-1.5, -2.0], [-3.25, -0.5]], dtype=np.float32)


def test_what_was_written_is_read_bit_by_bit(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path)
    key = cache.key(IDS, PROMPTS, COMPLETIONS)
    assert cache.read(key, IDS) is None
    cache.write(key, IDS, LOGPS)
    found = cache.read(cache.key(IDS, PROMPTS, COMPLETIONS), IDS)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tobytes() == LOGPS.tobytes()
    assert not list(tmp_path.rglob("*.tmp"))


def test_every_token_and_every_boundary_is_part_of_the_key(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path)
    others = [
        (IDS[::-1], PROMPTS, COMPLETIONS),
        (IDS, [PROMPTS[0], np.array([1, 6])], COMPLETIONS),
        (IDS, [PROMPTS[0][:2], PROMPTS[1]], COMPLETIONS),
        (IDS, PROMPTS, [COMPLETIONS[0], COMPLETIONS[1][::-1]]),
        # The same tokens end to end, cut elsewhere.
        (IDS, [np.array([1, 5]), PROMPTS[1]], [[np.array([6, 7, 2]), np.array([8, 2])], COMPLETIONS[1]]),
    ]
    keys = {cache.key(*content) for content in [(IDS, PROMPTS, COMPLETIONS), *others]}
    assert len(keys) == 1 + len(others)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"example_id": ["1:2"], "ref_logps": [[-1.0, -2.0]]}, "misses example 1:3"),
        ({"example_id": ["1:2", "1:3", "1:4"], "ref_logps": [[-1.0, -2.0]] * 3}, "holds example 1:4"),
        ({"example_id": ["1:3", "1:2"], "ref_logps": [[-1.0, -2.0]] * 2}, "another order"),
        ({"example_id": ["1:2", "1:3"], "ref_logps": [[-1.0, float("nan")]] * 2}, "not finite"),
        ({"other": [1]}, "cannot be read"),
    ],
)
def test_missing_and_extra_rows_are_errors_that_name_the_file(tmp_path: Path, rows: dict[str, Any], words: str) -> None:
    cache = ReferenceCache(tmp_path)
    key = cache.key(IDS, PROMPTS, COMPLETIONS)
    cache.path(key).parent.mkdir(parents=True)
    pq.write_table(pa.table(rows), cache.path(key))
    with pytest.raises(UserError, match=f"{key}.parquet.*{words}.*delete the file"):
        cache.read(key, IDS)


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    config = parse_config({"model": {"max_length": 128}})
    save_policy(
        tmp_path / "sft", tiny_model(max_length=128), tiny_tokenizer(), tiny_catalogue(), model_record(config, "sft")
    )
    return tmp_path / "sft"


def test_a_model_that_changed_by_one_weight_has_another_key(reference: Path, tmp_path: Path) -> None:
    before = reference_key(reference, "float32")
    assert reference_key(reference, "float32") == before
    config = parse_config({"model": {"max_length": 128}})
    model = tiny_model(max_length=128)
    save_policy(tmp_path / "same", model, tiny_tokenizer(), tiny_catalogue(), model_record(config, "align"))
    assert reference_key(tmp_path / "same", "float32") == before
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    save_policy(tmp_path / "other", model, tiny_tokenizer(), tiny_catalogue(), model_record(config, "sft"))
    assert reference_key(tmp_path / "other", "float32") != before


def test_template_tokenizer_and_quantization_are_part_of_the_key(reference: Path) -> None:
    keys = {reference_key(reference, "float32")}
    settings = json.loads((reference / SETTINGS).read_text())
    settings["template"]["separator"] = " | "
    (reference / SETTINGS).write_text(json.dumps(settings))
    keys.add(reference_key(reference, "float32"))
    settings["quantize"] = "nf4"
    (reference / SETTINGS).write_text(json.dumps(settings))
    keys.add(reference_key(reference, "float32"))
    path = reference / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    keys.add(reference_key(reference, "float32"))
    assert len(keys) == 4


def test_no_keeps_nothing_and_auto_goes_to_the_users_cache(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROSEPO_CACHE", str(tmp_path / "cache"))
    assert open_cache("no", reference, "float32") is None
    cache = open_cache("auto", reference, "float32")
    assert cache is not None
    assert cache.folder == tmp_path / "cache" / "reference" / reference_key(reference, "float32")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"pairs.reference_cache=.*cannot be written to.*or set it to no"):
        open_cache(str(tmp_path / "file"), reference, "float32")
