"""A Ray session that cannot begin is told within seconds, and a cluster not waited for without end."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rosepo.config import RayConfig
from rosepo.utils.errors import UserError

CONNECT_SECONDS = 5.0
"""For a connection to the cluster's port."""
TELLS_AFTER, GIVES_UP_AFTER = 5.0, 60.0
"""Seconds after which joining says what it waits for, and ends the process."""
LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107
"""Bytes of a Unix socket's path."""
_SOCKET = "/ray/session_2026-01-31_23-59-59_000000_4194304/sockets/plasma_store"
_DASHBOARD = ("http://", "https://")
_EXIT_BAD_INPUT = 2


def joins_cluster(config: RayConfig) -> bool:
    """Whether the session joins a running cluster instead of starting one."""
    return config.address != "local" and bool(config.address or os.environ.get("RAY_ADDRESS"))


def check_session(config: RayConfig) -> None:
    """Refuse a session that could not begin: see `check_reachable`, and where Ray is started here, a folder for its
    sockets whose path is too long for one.

    Raises:
        UserError: with who named the cluster or the folder.
    """
    if joins_cluster(config):
        check_reachable(config)
        return
    key = next((key for key in ("RAY_TMPDIR", "TMPDIR") if key in os.environ), "TMPDIR")
    folder = os.environ.get(key, "/tmp")
    length = len(os.fsencode(f"{folder}{_SOCKET}"))
    if length > LONGEST_SOCKET:
        raise UserError(
            f"{key}={folder} is too long for Ray, whose sockets lie below it: {length} bytes of path, of "
            f"{LONGEST_SOCKET} at most; set RAY_TMPDIR to a folder of fewer characters"
        )


def check_reachable(config: RayConfig) -> None:
    """Refuse a cluster that nothing answers for. Ray itself tries for minutes without a word.

    Raises:
        UserError: the address of a dashboard, no address, or nothing behind its port; with the key that named it.
    """
    named = _named(config)
    address = named.partition("=")[2]
    if address.startswith(_DASHBOARD):
        raise UserError(
            f"{named} is a dashboard's, which takes jobs (ray job submit): give the cluster's own, HOST:6379 by"
            " default, auto on one of its machines, or local to start Ray here"
        )
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host:
        return  # auto: Ray knows whether a cluster runs on this machine
    if not port.isdigit():
        raise UserError(f"{named} is no address: write HOST:PORT, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise unreachable(config, error) from error


@contextmanager
def joining(config: RayConfig) -> Iterator[None]:
    """Around `ray.init`: says after some seconds what is waited for, and after a minute ends the process.

    Ray waits below Python, where neither a signal nor an exception reaches it.
    """
    done, told = threading.Event(), os.dup(2)  # stderr itself may be muted meanwhile

    def watch() -> None:
        if done.wait(TELLS_AFTER):
            return
        _tell(told, f"waiting for the Ray cluster of {_named(config)} to answer, {GIVES_UP_AFTER:.0f} seconds at most")
        if not done.wait(GIVES_UP_AFTER - TELLS_AFTER):
            _tell(told, f"error: {unreachable(config, f'no answer within {GIVES_UP_AFTER:.0f} seconds')}")
            os._exit(_EXIT_BAD_INPUT)

    watcher = threading.Thread(target=watch, name="joining-ray", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        os.close(told)


def _named(config: RayConfig) -> str:
    """Who gave the address, and which."""
    return f"ray.address={config.address}" if config.address else f"RAY_ADDRESS={os.environ['RAY_ADDRESS']}"


def unreachable(config: RayConfig, why: object) -> UserError:
    """What there is to say where a cluster does not answer."""
    return UserError(
        f"the Ray cluster of {_named(config)} cannot be reached ({why}): look whether it runs and what its head's"
        " address is, or start Ray here with ray.address=local"
    )


def _tell(descriptor: int, line: str) -> None:
    os.write(descriptor, f"{line}\n".encode())
