"""Outputs: whole or not there at all."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import stat
from pathlib import Path

import pytest

from rosepo.run.folders import LOCK_FILE, continuing, passing, replacing
from rosepo.run.manifest import MANIFEST, read_manifest
from rosepo.utils.errors import UserError
from rosepo.utils.files import aside_of, digest, write_json


def test_a_folder_appears_only_when_its_work_ended_well(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    with replacing(folder) as aside:
        (aside / "part").write_text("1")
        assert not folder.exists()
    assert (folder / "part").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "table"
    with replacing(folder) as aside:
        (aside / "part").write_text("old")

    def fail() -> None:
        with replacing(folder) as aside:
            (aside / "part").write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert (folder / "part").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def _die_half_way(folder: Path) -> None:
    with replacing(folder) as aside:
        (aside / "part").write_text("half")
        os._exit(9)


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    process = multiprocessing.get_context("spawn").Process(target=_die_half_way, args=(folder,))
    process.start()
    process.join()
    (left,) = tmp_path.iterdir()
    assert re.fullmatch(rf"\.table\.[0-9a-f]+-{process.pid}-[0-9a-f]+\.tmp", left.name)
    with replacing(folder) as aside:
        (aside / "part").write_text("1")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_a_folder_of_another_machine_is_left_whatever_its_process_number(tmp_path: Path) -> None:
    folder = tmp_path / "table"
    with passing(folder) as aside:
        machine, pid, one = aside.name.removeprefix(".table.").removesuffix(".tmp").split("-")
    for name in (f".table.{machine[::-1]}-{2**30}-{one}.tmp", f".table.{2**30}.tmp", f".table.{machine}-{pid}-0.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / f".table.{machine}-{2**30}-{one}.tmp").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    with replacing(folder):
        pass
    gone = before - {path.name for path in tmp_path.iterdir()}
    assert gone == {f".table.{machine}-{2**30}-{one}.tmp"}


def test_two_writers_of_one_process_number_have_names_of_their_own(tmp_path: Path) -> None:
    with passing(tmp_path / "table") as one, passing(tmp_path / "table") as other:
        assert one != other
        assert one.exists()
    assert aside_of(tmp_path / "a.json") != aside_of(tmp_path / "a.json")


@pytest.mark.parametrize("files_too", [False, True])
def test_where_directories_cannot_be_locked_a_file_is_and_where_nothing_can_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], files_too: bool
) -> None:
    lock = fcntl.flock

    def as_on_nfs(handle: int, how: int) -> None:
        if files_too or stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", as_on_nfs)
    with continuing(tmp_path / "table", "key"):
        rival = (tmp_path / LOCK_FILE).open("r+")
        if files_too:
            lock(rival, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            with pytest.raises(BlockingIOError):
                lock(rival, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert ("cannot be locked (Bad file descriptor)" in capsys.readouterr().err) == files_too


def test_a_manifest_that_is_missing_or_broken_counts_as_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "nothing") is None
    (tmp_path / MANIFEST).write_text('{"stage": ')
    assert read_manifest(tmp_path) is None


def test_json_is_written_whole_with_plain_numbers(tmp_path: Path) -> None:
    import numpy as np

    write_json(tmp_path / "a.json", {"count": np.int64(3), "share": np.float32(0.5), "list": np.arange(2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"count": 3, "share": 0.5, "list": [0, 1]}


def test_equal_values_have_equal_digests_whatever_the_order_of_their_keys() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def stop_in(folder: Path, key: str, *left: str) -> None:
    """A body that writes these files and then fails."""

    def body() -> None:
        with continuing(folder, key) as aside:
            assert not list(aside.iterdir())
            for name in left:
                (aside / name).write_text("1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        body()


def test_what_a_body_left_behind_is_handed_to_the_next_one_with_the_same_key(tmp_path: Path) -> None:
    folder = tmp_path / "groups"
    stop_in(folder, "a", "part")
    assert not folder.exists()
    with continuing(folder, "a") as aside:
        assert (aside / "part").read_text() == "1"
        (aside / "other").write_text("2")
    assert sorted(path.name for path in folder.iterdir()) == ["other", "part"]
    assert [path.name for path in tmp_path.iterdir()] == ["groups"]


def test_another_key_starts_anew_and_a_body_that_left_nothing_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "groups"
    stop_in(folder, "a", "part")
    stop_in(folder, "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["a", "b"])
def test_two_at_once_are_refused_and_the_first_one_loses_nothing(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "groups"
    with continuing(folder, "a") as aside:
        (aside / "part").write_text("1")
        with pytest.raises(UserError, match="another rosepo is writing"), continuing(folder, key):
            pass
    assert (folder / "part").read_text() == "1"
