"""Write files whole or not at all, even if the process or the machine stops in between."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from meetlm.config.errors import RunError

_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""Errors of file systems, mostly network ones, that cannot flush a folder."""


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to a file beside ``path``, then move it to ``path`` in one step."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    os.replace(partial, path)


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a folder for results that is not empty; hidden files do not count.

    Raises:
        RunError: Names some of the files.
    """
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    if names:
        ellipsis = ", …" if len(names) > 3 else ""
        raise RunError(f"--out {folder} holds other files ({', '.join(names[:3])}{ellipsis}); choose another folder")


def sync(path: Path, *, deep: bool = True) -> None:
    """Wait until a file, or a folder and with ``deep`` everything in it, is on the disk."""
    for inner in path.rglob("*") if deep else ():
        _flush(inner)
    _flush(path)


def _flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)
