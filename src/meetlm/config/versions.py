"""The code that a result was computed with: versions of packages, and the commit of meetlm's checkout."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package that is installed."""
    result = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            result[name] = version(name)
    return result


def git_hash(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit of a package's checkout, with ``-dirty`` where ``src`` has changes.

    Args:
        package: Folder of the package; meetlm's by default.

    Returns:
        ``None`` if the package is not ``src/NAME`` of a repository: an installed package may lie inside another
        repository, whose commit is not its own.
    """
    try:
        top, commit = _git(package, "rev-parse", "--show-toplevel", "HEAD").splitlines()
        src = Path(top) / "src"
        if (src / package.name).resolve() != package.resolve():
            return None
        changed = _git(package, "status", "--porcelain", "--", str(src))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *args: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
