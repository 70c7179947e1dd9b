"""Check that the tests notice deliberate breaks of the code.

``python tests/mutations/check.py`` copies the code, applies one mutation after the other, runs the tests that have to
notice it and prints which mutations were killed. The exit status is 1 if one survived.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
TIME_LIMIT = 600
"""Seconds for the tests of one mutation."""
MARKERS = "not slow and not integration"
"""Which tests run: those of ``make test``."""
FAILED, PASSED = 1, 0
"""Exit statuses of pytest; any other means that the tests did not run."""


def copy_code(folder: Path) -> None:
    """Copy code and tests into ``folder``."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)


def apply(mutation: Mutation, source: Path) -> None:
    """Break a file of ``source`` (``src/meetlm``)."""
    file = source / mutation.file
    text = file.read_text()
    if text.count(mutation.old) != 1:
        raise SystemExit(f"{mutation.name}: its old text occurs {text.count(mutation.old)} times in {mutation.file}")
    file.write_text(text.replace(mutation.old, mutation.new))


def run_tests(folder: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run tests of the code in ``folder`` up to the first failure, on one thread."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", "-rfE", "-m", MARKERS]
    command = [sys.executable, "-B", "-m", "pytest", *options]
    return subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )


def check(mutation: Mutation) -> tuple[str, str]:
    """Return ``killed`` or ``survived``, and the test that noticed the mutation or what pytest printed last."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        copy_code(folder)
        apply(mutation, folder / "src" / "meetlm")
        try:
            process = run_tests(folder, mutation.tests)
        except subprocess.TimeoutExpired:
            return "survived", f"no failure within {TIME_LIMIT} s"
    lines = process.stdout.splitlines() or [process.stderr.strip() or "pytest printed nothing"]
    if process.returncode == PASSED:
        return "survived", lines[-1]
    failure = next((line for line in reversed(lines) if line.startswith(("FAILED", "ERROR"))), None)
    if process.returncode != FAILED or failure is None:
        raise SystemExit(f"{mutation.name}: the tests did not run:\n{process.stdout[-3000:]}{process.stderr[-1000:]}")
    return "killed", failure.removeprefix("FAILED ").removeprefix("ERROR ").split(" - ")[0]


def main() -> int:
    """Parse the command line, check the mutations and print a line for each."""
    parser = argparse.ArgumentParser(description="Check that the tests notice deliberate breaks of the code.")
    parser.add_argument("--list", action="store_true", help="print the mutations and what each would do to a user")
    parser.add_argument("--only", action="append", metavar="NAME", help="check this mutation; may be repeated")
    args = parser.parse_args()
    unknown = sorted(set(args.only or ()) - {mutation.name for mutation in MUTATIONS})
    if unknown:
        parser.error(f"unknown mutations: {', '.join(unknown)}; --list prints the names")
    chosen = [mutation for mutation in MUTATIONS if not args.only or mutation.name in args.only]
    if args.list:
        for mutation in chosen:
            print(f"{mutation.name}  ({mutation.file})\n    {mutation.why}")
        return 0
    survivors = 0
    for mutation in chosen:
        start = time.perf_counter()
        verdict, detail = check(mutation)
        survivors += verdict == "survived"
        print(f"{verdict:8}  {mutation.name:42} {time.perf_counter() - start:4.0f} s  {detail}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutations killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
