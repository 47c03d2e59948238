"""Secrets stay out of what is written; everything else stays in."""

from __future__ import annotations

import pytest

from rosepo.utils.redaction import redact, redact_tree


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://AKIA:se/cr+et@bucket/log.parquet", "s3://***@bucket/log.parquet"),
        ("https://ann:hunter2@host/x?api_key=abc&page=2", "https://***@host/x?api_key=***&page=2"),
        ("https://host/x?X-Amz-Signature=abc", "https://host/x?X-Amz-Signature=***"),
        ("HF_TOKEN=abc rosepo run", "HF_TOKEN=*** rosepo run"),
        ("--set data.password=abc", "--set data.password=***"),
    ],
)
def test_secrets_are_hidden(text: str, kept: str) -> None:
    assert redact(text) == kept
    assert redact_tree({"a": [text]}) == {"a": [kept]}


@pytest.mark.parametrize(
    "text",
    [
        "rosepo sft --set sft.pack_tokens=256 --out runs/a",
        "s3://bucket/logs/part@2.parquet",
        "rosepo check --set data.columns.item_id=keyword_id",
    ],
)
def test_ordinary_settings_and_paths_are_not(text: str) -> None:
    assert redact(text) == text
