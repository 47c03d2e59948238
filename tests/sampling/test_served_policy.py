"""Groups whose wrong answers, and reference log-probabilities, come from a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rosepo.run.paths import RunPaths
from rosepo.sampling.pairs import pairs
from tests.lm.serving.model_server import STAND_IN
from tests.sampling.runs import configure, read


@pytest.mark.parametrize("gpus_per_actor", [1, 2], ids=["answers", "answers and reference"])
def test_a_policy_that_is_served_gives_the_groups_of_one_that_is_in_the_actor(
    gpus_per_actor: int, run: RunPaths, ray_cluster: None, in_process: None, tmp_path: Path
) -> None:
    own, served = tmp_path / "own", tmp_path / "served"
    settings = {"strategies": {"self_hard": 1.0, "policy": 1.0}, "groups_per_user": 1}
    pairs(configure(**settings), run, own)
    settings |= {"engine": "vllm", "vllm": STAND_IN, "gpus_per_actor": gpus_per_actor, "gpu": "no"}
    pairs(configure(**settings), run, served)
    ours, theirs = read(own), read(served)
    assert theirs["rejected_items"].to_pylist() == ours["rejected_items"].to_pylist()
    pairs_of_lists = zip(ours["ref_logps"].to_pylist(), theirs["ref_logps"].to_pylist(), strict=True)
    for expected, found in pairs_of_lists:
        np.testing.assert_allclose(found, expected, atol=1e-3)
