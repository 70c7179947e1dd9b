"""A killed evaluation resumes: the whole command, a real endpoint, SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import meetlm
from judge_server import Body, JudgeServer, Reply, longer
from meetlm.evaluation.judge import FILE
from meetlm.evaluation.record import Evaluation
from reward_models import folder_of
from test_evaluate import evaluated, held_out, systems

CONCURRENCY = 4


def started(*args: object) -> subprocess.Popen[str]:
    """Start ``meet`` as a process of its own."""
    source = os.pathsep.join([str(Path(meetlm.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "meetlm", *map(str, args)],
        env={**os.environ, "PYTHONPATH": source},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return all of a record but how many answers were there already."""
    fields = asdict(evaluation)
    del fields["judge"]["num_cached"], fields["judge"]["this_run"]
    return fields


@pytest.mark.slow
def test_killed_among_the_judges_calls_it_ends_with_the_same_record(tmp_path: Path) -> None:
    """The record is that of one go, number for number; only calls under way at the kill are sent a second time."""
    args = [*systems(tmp_path), "--baseline", "c", "--reward", folder_of("deberta", tmp_path / "rm")]
    with JudgeServer(longer) as server:
        args += ["--judge", "j", "--judge.base_url", server.url, "--judge.key_env", "null"]
        args += ["--judge.concurrency", CONCURRENCY, "--judge.num_prompts", 20]
        whole = evaluated(tmp_path, *args)
        assert whole.judge is not None and len(server.received) == server.distinct == whole.judge.overall.num_calls > 40
        calls = server.distinct
        server.received.clear()
        killed: list[subprocess.Popen[str]] = []

        def kills(body: Body, number: int) -> Reply:
            if number == calls // 2:
                killed[0].kill()
            return longer(body, number)

        server.behave = kills
        again = ["evaluate", *args, "--data.path", held_out(tmp_path), "--out", tmp_path / "again", "--quiet"]
        killed.append(started(*again))
        assert killed[0].wait(120) == -signal.SIGKILL
        killed[0].communicate()
        folder = tmp_path / "again"
        lines = (folder / "judge" / FILE).read_text().splitlines()
        (scores,) = (folder / "scores").iterdir()
        before, scored = len(server.received), scores.read_text()
        assert calls // 2 + 1 <= before <= calls // 2 + CONCURRENCY and before - CONCURRENCY <= len(lines) < before
        assert not (folder / "evaluation.json").exists()
        server.behave = longer
        second = started(*again)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 0, said
        assert server.distinct == calls
        assert len(server.received) - calls == before - len(lines) <= CONCURRENCY
    evaluation = Evaluation.read(folder / "evaluation.json")
    assert figures(evaluation) == figures(whole)
    assert evaluation.judge is not None and evaluation.judge.num_cached == len(lines)
    assert (
        evaluation.judge.this_run.num_responses == calls - len(lines) and evaluation.judge.stored.num_responses == calls
    )
    assert scores.read_text() == scored, "no reply is scored a second time"
    for name in ("report.html", "report.md"):
        assert (folder / name).is_file()
