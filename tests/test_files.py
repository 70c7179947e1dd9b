"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from meetlm.config.errors import RunError
from meetlm.config.files import (
    MANIFEST,
    PARTIAL,
    locked,
    manifest_failure_reason,
    refuse_foreign_files,
    sync,
    write_atomic,
    write_manifest,
)


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


def test_a_file_that_was_being_written_is_not_foreign(tmp_path: Path) -> None:
    """A process that is killed while it writes its first file continues."""
    (tmp_path / f"config.yaml{PARTIAL}").touch()
    refuse_foreign_files(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"holds other files \(thesis.tex\)"):
        refuse_foreign_files(tmp_path)


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match=r"a\.json cannot be written: No space left on device \([\d.]+ GB are free\)"):
        write_atomic(tmp_path / "a.json", "{}")


def test_a_manifest_names_the_file_that_has_changed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert (manifest_failure_reason(tmp_path) or "").startswith("manifest.json is missing")
    write_manifest(tmp_path)
    assert manifest_failure_reason(tmp_path) is None
    (tmp_path / "a").write_text("A")
    assert manifest_failure_reason(tmp_path, ["b"]) is None
    assert (manifest_failure_reason(tmp_path) or "").startswith("a is truncated or altered")
    (tmp_path / "a").unlink()
    assert manifest_failure_reason(tmp_path) == "a is missing"
    for text in ("", "[]", "{}"):
        (tmp_path / MANIFEST).write_text(text)
        assert (manifest_failure_reason(tmp_path) or "").startswith("manifest.json is missing or damaged")
        assert manifest_failure_reason(tmp_path, ["b"]) is not None


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(RunError, match="run is in use by another process"), locked(tmp_path / "run"):
            pass
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()  # nothing was written
