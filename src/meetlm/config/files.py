"""Files that are either whole or not there: a run that is killed, or whose machine is, leaves no half of one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from meetlm.config.errors import RunError

_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""What some file systems, over a network mostly, say where a folder is to be flushed: they cannot."""


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to a file beside ``path`` and move it there at once; one that was there is replaced."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a folder for results that holds other files; hidden ones do not count.

    Raises:
        RunError: Names some of the files.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if names:
        more = ", …" if len(names) > 3 else ""
        raise RunError(f"--out {folder} holds other files ({', '.join(names[:3])}{more}); choose another folder")


def sync(place: Path, *, deep: bool = True) -> None:
    """Wait until a file, or the names in a folder and with ``deep`` all under it, are on the disk."""
    for path in place.rglob("*") if deep else ():
        _flush(path)
    _flush(place)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    if folder and os.name != "posix":  # a folder cannot be opened there
        return
    place = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(place)
    except OSError as error:
        if not folder or error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(place)
