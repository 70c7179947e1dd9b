"""Checks that the machine is quiet: nothing is timed while other processes use it."""

from __future__ import annotations

import os
import time

import psutil

LIMIT = 0.2
"""Most of one core that all other processes together may use."""


def current_load(seconds: float = 3.0) -> tuple[float, list[str]]:
    """Return the load of all other processes in cores, and the busiest of them in words."""
    before, watched = Busy(), {p.pid: p for p in psutil.process_iter() if p.pid != os.getpid()}
    for process in watched.values():
        _share(process)
    time.sleep(seconds)
    shares = sorted(((_share(process), process) for process in watched.values()), key=lambda x: -x[0])
    named = [f"{process.pid} ({_command(process)}): {share:.0%} of a core" for share, process in shares[:5] if share]
    return before.other_load(), named


def refuse(load: float, named: list[str]) -> None:
    """Exit if other processes are busy.

    Args:
        load: Their load in cores.
        named: The busiest of them, in words.

    Raises:
        SystemExit: They use more than ``LIMIT``.
    """
    if load > LIMIT:
        busiest = "\n".join(f"  {line}" for line in named)
        raise SystemExit(
            f"other processes use {load:.0%} of a core, more than {LIMIT:.0%}: times would mean nothing\n{busiest}"
        )


class Busy:
    """Measures the load of processes other than this one and its children, from its creation on."""

    def __init__(self) -> None:
        self._start, self._busy_seconds, self._our_cpu_seconds = (
            time.perf_counter(),
            _busy_seconds(),
            _our_cpu_seconds(),
        )

    def other_load(self) -> float:
        """Return the average number of cores that others used since then."""
        used = (_busy_seconds() - self._busy_seconds) - (_our_cpu_seconds() - self._our_cpu_seconds)
        return max(0.0, used / (time.perf_counter() - self._start))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)  # are in user and nice already
    return sum(times) - idle - guests


def _our_cpu_seconds() -> float:
    """Return the CPU seconds of this process and its living children; started and ended outside of a measurement."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:2]) for p in (me, *me.children(recursive=True)))


def _share(process: psutil.Process) -> float:
    try:
        return float(process.cpu_percent()) / 100
    except psutil.Error:
        return 0.0


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:70] or process.name()
    except psutil.Error:
        return "ended"
