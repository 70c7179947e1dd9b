"""The groups of processes, and the count of what was compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from distributed.processes import Processes

SIZES = (2, 4)
COMPARED: Counter[str] = Counter()


@pytest.fixture(scope="session")
def groups() -> Iterator[Callable[[int], Processes]]:
    """Return the function that returns the group of a size."""
    started: dict[int, Processes] = {}

    def group(size: int) -> Processes:
        if size not in started:
            started[size] = Processes(size)
        COMPARED[f"{size} processes"] += 1
        return started[size]

    yield group
    for processes in started.values():
        processes.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often each number of processes was compared with one process."""
    if COMPARED:
        counts = ", ".join(f"{count} runs with {name}" for name, count in sorted(COMPARED.items()))
        terminalreporter.write_line(f"compared with one process: {counts}")
