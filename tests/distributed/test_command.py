"""The command in several processes: started by ``--processes`` or ``torchrun``, killed, continued, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

import meetlm
from run_folders import config_for
from tiny import gap

pytestmark = pytest.mark.distributed

LONG = ("--stages.step1.epochs", "400", "--batch.save_steps", "5")
SECONDS = 240


def start(*arguments: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Start ``meet``, with its own cache of models and log-probs."""
    source = os.pathsep.join([str(Path(meetlm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "meetlm", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Return the exit code and what was printed on stdout and stderr."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEETLM_CACHE", str(tmp_path / "cache"))
    config_for(tmp_path / "inputs", "llama", "lora")
    return tmp_path / "inputs" / "config.yaml"


def weights(run: Path) -> dict[str, object]:
    return {**load_file(run / "model" / "model.safetensors"), **load_file(run / "control.safetensors")}


def test_one_run_is_trained_in_any_number_of_processes(config: Path, tmp_path: Path) -> None:
    """Both steps in 1, 2 and 4 processes; every message, line and file is written once."""
    runs = {size: tmp_path / f"run{size}" for size in (1, 2, 4)}
    printed = {}
    for size, run in runs.items():
        launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "4") if size == 4 else ()
        options = ("--processes", 2) if size == 2 else ()
        code, out, err = finish(
            start("train", "--config", config, "--out", run, "--quiet", *options, launcher=launcher)
        )
        assert code == 0, err
        assert out == f"{run}\n"
        printed[size] = [line for line in err.splitlines() if "torch" not in line and "***" not in line and line]
    for size in (2, 4):
        assert len(printed[size]) == len(printed[1])
        assert gap(weights(runs[1]), weights(runs[size])) < 1e-4  # type: ignore[arg-type]
        files = [{str(path.relative_to(run)) for path in run.rglob("*")} for run in (runs[1], runs[size])]
        rng = {name for name in files[0] ^ files[1]}
        assert all("rng_state" in name for name in rng)
        for stage in ("step1", "step2"):
            lines = [(run / stage / "metrics.jsonl").read_text().splitlines() for run in (runs[1], runs[size])]
            losses = [[json.loads(line)["loss"] for line in part] for part in lines]
            assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        before, after = (json.loads((run / "preference.json").read_text()) for run in (runs[1], runs[size]))
        assert before["after step2"]["nll"] == pytest.approx(after["after step2"]["nll"], abs=1e-4)


def test_a_killed_process_ends_the_job_and_the_run_continues(config: Path, tmp_path: Path) -> None:
    """SIGKILL of the second process: a message that names the checkpoint; one process then continues the run."""
    run = tmp_path / "run"
    job = start("train", "--config", config, "--out", run, "--processes", 2, *LONG)
    deadline = time.monotonic() + SECONDS
    while not list(run.glob("step1/checkpoint-*")):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(job.pid).children()
    (second,) = [child for child in children if child.environ().get("RANK") == "1"]
    second.send_signal(signal.SIGKILL)
    code, _, err = finish(job)
    assert code == 1
    assert not psutil.pid_exists(second.pid) and not any(child.is_running() for child in children)
    (checkpoint,) = run.glob("step1/checkpoint-*")
    assert err.splitlines()[-1] == (
        f"error: process 2 of 2 was ended by SIGKILL, perhaps for lack of memory; the last checkpoint is {checkpoint}: "
        "run the same command again to continue"
    )
    assert "Traceback" not in err
    step = int(checkpoint.name.split("-")[1])
    continued = start("train", "--config", config, "--out", run, *LONG)
    deadline = time.monotonic() + SECONDS
    while not any(int(path.name.split("-")[1]) > step for path in run.glob("step1/checkpoint-*")):
        assert continued.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    continued.kill()
    _, _, err = finish(continued)
    assert f"continuing after step {step}" in err


def test_errors_are_shown_once(config: Path, tmp_path: Path) -> None:
    command = ("train", "--config", config, "--out", tmp_path / "run")
    code, out, err = finish(start(*command, "--processes", 3))
    assert (code, out) == (1, "") and err.startswith("error: batch.pairs is 4, ") and err.count("error:") == 1
    missing = tmp_path / "missing.jsonl"
    code, out, err = finish(start(*command, "--processes", 2, "--data.train_file", missing))
    assert (code, out) == (1, "")
    assert err.count("error:") == err.count("no such file") == 1 and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_an_error_of_one_process_is_shown(config: Path, tmp_path: Path) -> None:
    """The second process reads other data, as a machine of its own might."""
    values = yaml.safe_load(config.read_text())
    file = Path(values["data"]["train_file"])
    other = file.with_name("other.jsonl")
    other.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    script = tmp_path / "main.py"
    script.write_text(
        "import os, sys\n"
        "if os.environ['RANK'] == '1':\n"
        f"    sys.argv += ['--data.train_file', {str(other)!r}]\n"
        "from meetlm.cli import main\nmain(prog_name='meet')\n"
    )
    source = os.pathsep.join([str(Path(meetlm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script, "train", "--config", config]
        + ["--out", tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 1
    assert "error: process 1 of 2: the data: process 2 of 2 has another version than process 1" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_command_of_one_process_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meetlm", "sweep", "hh-meet-lora"],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "`meet sweep` runs in one process, but WORLD_SIZE is 2" in done.stderr
