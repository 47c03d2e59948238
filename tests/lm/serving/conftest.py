"""How models are served in the tests of this folder."""

from __future__ import annotations

import os

import pytest

from tests.lm.serving.model_server import STAND_IN


@pytest.fixture(params=[STAND_IN, pytest.param("", marks=pytest.mark.vllm, id="vllm")], ids=["transformers", "vllm"])
def vllm(request: pytest.FixtureRequest) -> str:
    """The command of a server with vLLM's face: a model in Transformers behind it, or vLLM itself ($ROSEPO_VLLM)."""
    if request.param:
        return str(request.param)
    if "ROSEPO_VLLM" not in os.environ:
        pytest.fail("ROSEPO_VLLM is not set: run `make test-vllm VLLM=path/to/vllm`")
    return os.environ["ROSEPO_VLLM"]
