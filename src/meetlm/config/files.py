"""Write files whole or not at all, even if the process or the machine stops in between; detect changed files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from meetlm.config.errors import RunError
from meetlm.config.world import is_lost_connection

if os.name == "posix":
    import fcntl

MANIFEST = "manifest.json"
"""File in a folder with the SHA-256 of each other file."""
PARTIAL = ".partial"
"""Suffix of files that are being written."""

_NOT_FOR_FOLDERS = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}
"""Errors of file systems, mostly network ones, that cannot flush a folder."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF}
"""Errors of file systems that cannot lock."""


def write_atomic(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to a file beside ``path``, then move it to ``path`` in one step."""
    partial = path.with_name(path.name + PARTIAL)
    with explain_write_errors(path):
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        os.replace(partial, path)


@contextmanager
def explain_write_errors(path: Path, remedy: str = "run the same command again to continue") -> Iterator[None]:
    """Turn an error of a full disk, or of a library that writes to one, into a RunError that names path and remedy.

    Other errors of the operating system name their file and stay as they are.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save() raises RuntimeError
        if isinstance(error, RuntimeError) and is_lost_connection(error):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        if "inline_container" in reason:  # torch.save() has written less than it was given
            reason = "the disk is full, or a quota or limit of file sizes is reached"
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.is_dir())).free
        raise RunError(f"{path} cannot be written: {reason} ({free / 1e9:.1f} GB are free); {remedy}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process alone; it is created, and removed again if nothing is written to it.

    The lock is the operating system's, on the open folder: it ends with the process, however that ends. File systems
    without locks, and systems other than POSIX, have no such protection.

    Raises:
        RunError: Another process holds the folder.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY) if os.name == "posix" else None
    try:
        if descriptor is not None:
            lock(descriptor, folder)
        yield
    finally:
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
        if descriptor is not None:
            os.close(descriptor)


def lock(descriptor: int, path: Path) -> None:
    """Lock an open file or folder until it is closed.

    Raises:
        RunError: Another process holds it.
    """
    if os.name != "posix":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(f"{path} is in use by another process: wait until it ends, or choose another folder") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def write_manifest(folder: Path) -> None:
    """Write the SHA-256 of each file of a folder into :data:`MANIFEST`."""
    hashes = {path.name: _sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=2) + "\n")


def manifest_failure_reason(folder: Path, names: Sequence[str] = ()) -> str | None:
    """Return which file of a folder is missing or changed since :func:`write_manifest`, or ``None``.

    Args:
        folder: The folder.
        names: The files to check; all of them by default.
    """
    try:
        hashes = json.loads((folder / MANIFEST).read_text())
        for name in names or list(hashes.keys()) or [MANIFEST]:  # an empty manifest is damaged
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != hashes[name]:
                return f"{name} is truncated or altered: its SHA-256 is not that of {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} is missing or damaged ({error})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a folder for results that is not empty; hidden files and what :func:`write_atomic` leaves do not count.

    Raises:
        RunError: Names some of the files.
    """
    paths = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in paths if not path.name.startswith(".") and path.suffix != PARTIAL)
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
