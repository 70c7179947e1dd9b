"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from meetlm.config.files import sync, write_atomic


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    write_atomic(path, "dépêche\n")
    assert path.read_bytes() == "dépêche\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]


def test_contents_reach_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order in which things reach the disk: contents, then the name."""
    events: list[str] = []
    flush, replace = os.fsync, os.replace

    def fsync(number: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        flush(number)

    def rename(source: Path, target: Path) -> None:
        events.append(f"to {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    write_atomic(tmp_path / "a.json", "{}")
    assert events == ["a.json.partial", "to a.json"]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_text("b")
    events.clear()
    sync(tmp_path)
    assert sorted(events[:-1]) == ["a.json", "b", "in"] and events[-1] == tmp_path.name
    events.clear()
    sync(tmp_path, deep=False)
    sync(tmp_path / "in" / "b")
    assert events == [tmp_path.name, "b"]


def test_a_file_system_that_cannot_flush_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    (tmp_path / "a").write_text("a")
    with pytest.raises(OSError, match="no"):
        sync(tmp_path)
