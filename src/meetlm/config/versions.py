"""What code made a result: the versions of packages, and the commit where meetlm runs from a checkout."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package that is installed; one that is not has no entry."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def git_hash(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return the commit of a package's own checkout, with ``-dirty`` where its ``src`` differs from that.

    Args:
        package: The package's folder; meetlm's own by default.

    Returns:
        ``None`` where the package is not ``src/NAME`` of a repository: an installed one may well lie inside
        somebody's repository, whose commit would say nothing of it.
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


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
