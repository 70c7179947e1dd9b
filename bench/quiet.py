"""Checks that the machine is quiet: nothing is timed while other processes use it."""

from __future__ import annotations

import time

import psutil

LIMIT = 0.2
"""Largest share of a core that all other processes together may use."""


def refuse_busy_machine(seconds: float = 3.0) -> None:
    """Measure the load of all other processes for some seconds.

    Raises:
        SystemExit: They use more than ``LIMIT`` of a core.
    """
    busy = Busy()
    time.sleep(seconds)
    load = busy.other_load()
    if load > LIMIT:
        raise SystemExit(
            f"other processes use {load:.0%} of a core, more than {LIMIT:.0%}: times would mean nothing (see top)"
        )


class Busy:
    """Measures the load of processes other than this one and its children, from its creation on."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._busy_seconds, self._our_cpu_seconds = _busy_seconds(), _our_cpu_seconds()

    def other_load(self) -> float:
        """Return the average number of cores that other processes used since then."""
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
