"""How long threads spin while they wait: a step of ours with one setting and others, alone, then two at once.

    python bench/spin.py 2000 5000 20000 [--job lora-two-levels] [--rows 4] [--length 128] [--rounds 10]

Two workers of each setting are loaded before anything is timed. Alone, one of each takes a step while all others
wait; then both of a setting take theirs at the same time. It says the time over that of the first setting alone in
the same round: the median and [the lowest, the highest].
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from quiet import others_now, refuse
from results import spread
from run import Worker, enough_memory


def main() -> None:
    """Time the settings and print each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", nargs="+", help="of libgomp: GOMP_SPINCOUNT")
    parser.add_argument("--job", default="lora-two-levels")
    parser.add_argument("--rows", type=int, default=4, help="in a step")
    parser.add_argument("--length", type=int, default=128, help="most tokens of prompt and reply")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    refuse(*others_now())
    enough_memory(2 * 1.5 * len(chosen.counts))
    scale = {"steps": 2 * chosen.rounds + 2, "rows": chosen.rows, "max_length": chosen.length}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        workers: dict[str, list[Worker]] = {count: [] for count in chosen.counts}
        every: list[Worker] = []
        try:
            for count in 2 * chosen.counts:
                place = Path(folder) / str(len(every))
                place.mkdir()
                every.append(Worker(chosen.job, "ours", scale, chosen.threads, place, count))
                workers[count].append(every[-1])
            for worker in every:
                worker.ask("go")  # warm-up
            alone: dict[str, list[float]] = {count: [] for count in workers}
            at_once: dict[str, list[float]] = {count: [] for count in workers}
            for number in range(chosen.rounds):
                for count in workers if number % 2 == 0 else reversed(workers):
                    both = workers[count]
                    alone[count].append(both[0].ask("go")["seconds"])
                    told = list(pool.map(lambda worker: worker.ask("go"), both))
                    at_once[count].append(sum(event["seconds"] for event in told) / 2)
        finally:
            for worker in every:
                worker.stop()
    first = alone[chosen.counts[0]]
    for count in workers:
        print(f"{count}: alone {over(alone[count], first)}, two at once {over(at_once[count], first)}", flush=True)


def over(seconds: Sequence[float], first: Sequence[float]) -> str:
    """Return the ratio of times, with its spread, and their median."""
    ratios = [one / other for one, other in zip(seconds, first, strict=True)]
    return f"{spread(ratios)} ({median(seconds):.2f} s)"


if __name__ == "__main__":
    main()
