"""Run the experiments of ``plan.yaml`` whose results are missing; each arm writes ``results/NAME.json``.

    python experiments/run.py [PATTERN ...]     # arms whose names match, such as 'headline/tone-*'; all by default
    python experiments/run.py --list            # all arms, and which of them are finished

Several processes may run at once: an arm that another process works on is left to it. A killed arm continues. Run it in
the root of the repository; ``experiments/report.py`` writes docs/experiments.md.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from arms import RUNS, Arm, Experiments
from tasks import read_plan

from meetlm.cli.console import ConsoleReporter, quiet_libraries
from meetlm.config.files import write_atomic

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def digest(settings: dict[str, Any]) -> str:
    """Return the hash of an arm's settings that its result names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def finished(arm: Arm) -> dict[str, Any] | None:
    """Return the metrics of an arm; ``None`` if there are none of its settings."""
    file = RESULTS / f"{arm.name}.json"
    if not file.is_file():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    metrics: dict[str, Any] | None = result["metrics"] if result["settings"] == digest(arm.settings) else None
    return metrics


@contextmanager
def claimed(arm: Arm) -> Iterator[bool]:
    """Yield whether no other process works on the arm, and keep others off it meanwhile."""
    file = RUNS / "locks" / arm.name.replace("/", "-")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def rounded(value: Any) -> Any:
    """Return metrics with five significant digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    return [rounded(entry) for entry in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", default=["*"])
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))  # scorers are named tasks:FUNCTION
    quiet_libraries()
    reporter = ConsoleReporter(quiet=not sys.stderr.isatty())
    for arm in Experiments(read_plan(), reporter).arms():
        if not any(fnmatchcase(arm.name, pattern) for pattern in options.patterns):
            continue
        if options.list:
            print(f"{'finished' if finished(arm) else 'missing':9} {arm.name}")
            continue
        with claimed(arm) as is_mine:
            if not is_mine or finished(arm) is not None:
                continue
            started = time.perf_counter()
            reporter.message(f"== {arm.name}")
            metrics = rounded(arm.run())
            result = {"settings": digest(arm.settings), "metrics": metrics}
            file = RESULTS / f"{arm.name}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(result, ensure_ascii=False) + "\n")
            reporter.message(f"== {arm.name}: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
