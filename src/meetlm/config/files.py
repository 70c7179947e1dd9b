"""Files that are either whole or not there: a run that is killed, or whose machine is, leaves no half of one."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to a file beside ``path`` and move it there at once; one that was there is replaced."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)


def sync(folder: Path, *, deep: bool = True) -> None:
    """Wait until what stands in ``folder``, and with ``deep`` all under it, is on the disk."""
    for path in folder.rglob("*") if deep else ():
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name != "posix":  # a folder cannot be opened there
        return
    place = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(place)
    finally:
        os.close(place)
