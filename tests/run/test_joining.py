"""A cluster that is not there is told within seconds, one that does not answer within a limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rosepo.config import RayConfig
from rosepo.run.joining import check_reachable, check_session, joins_cluster
from rosepo.utils.errors import UserError

SESSION = """
import rosepo.run.joining as joining
from rosepo.config import RayConfig
from rosepo.run.ray_session import ray_session
joining.TELLS_AFTER, joining.GIVES_UP_AFTER = 0.5, 2.0
with ray_session(RayConfig(address={address!r})):
    print("joined")
"""


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dead() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"127.0.0.1:{port}"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_that_nothing_listens_on_is_refused_with_who_named_it(
    scheme: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=rf"ray.address={scheme}{dead} cannot be reached"):
        check_reachable(RayConfig(address=scheme + dead))
    monkeypatch.setenv("RAY_ADDRESS", scheme + dead)
    with pytest.raises(UserError, match=rf"RAY_ADDRESS={scheme}{dead} cannot be reached.*ray.address=local"):
        check_reachable(RayConfig())


@pytest.mark.parametrize(("address", "words"), [("http://127.0.0.1:8265", "dashboard"), ("head:gcs", "HOST:PORT")])
def test_what_is_no_clusters_address_is_refused(address: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_reachable(RayConfig(address=address))


def test_what_listens_or_is_rays_own_to_find_passes(silent: str) -> None:
    check_reachable(RayConfig(address=silent))
    check_reachable(RayConfig(address="auto"))


@pytest.mark.parametrize("key", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_that_is_too_long_for_sockets_is_refused_where_ray_is_started_here(
    key: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    check_session(RayConfig())
    monkeypatch.setenv(key, "/tmp/" + 34 * "x")
    check_session(RayConfig())
    monkeypatch.setenv(key, "/tmp/" + 35 * "x")
    with pytest.raises(UserError, match=rf"{key}=/tmp/x.*108 bytes.*107 at most; set RAY_TMPDIR"):
        check_session(RayConfig())
    check_session(RayConfig(address=silent))


def test_local_starts_ray_here_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert [joins_cluster(RayConfig(address=address)) for address in (None, "local", "auto")] == [False, False, True]
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert [joins_cluster(RayConfig(address=address)) for address in (None, "local", "auto")] == [True, False, True]


def test_a_ray_that_is_started_here_may_take_as_long_as_it_needs() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    quick = SESSION.format(address=None).replace("0.5, 2.0", "0.01, 0.02")
    quick = quick.replace("RayConfig(address=None)", "RayConfig(num_cpus=1), debug=True")  # stderr is not muted
    done = subprocess.run([sys.executable, "-c", quick], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["joined"]), done.stderr
    assert "Exception in thread" not in done.stderr
    assert "waiting for" not in done.stderr


def test_a_cluster_that_does_not_answer_is_told_and_given_up(silent: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", SESSION.format(address=silent)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "joined" not in done.stdout
    assert done.stderr.splitlines()[-2:] == [
        f"waiting for the Ray cluster of ray.address={silent} to answer, 2 seconds at most",
        f"error: the Ray cluster of ray.address={silent} cannot be reached (no answer within 2 seconds): look whether"
        " it runs and what its head's address is, or start Ray here with ray.address=local",
    ]
