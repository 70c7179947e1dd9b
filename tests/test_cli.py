"""The command: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meetlm.cli import main
from run_folders import config_for
from tiny import few_steps

pytestmark = few_steps


def meet(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_train_and_generate(tmp_path: Path) -> None:
    config_for(tmp_path, "llama", "lora")
    run = tmp_path / "run"
    config = ("--config", str(tmp_path / "config.yaml"))
    done = meet("train", *config, "--out", str(run), "--quiet", "--stages.step1.epochs", "2", "seed=3")
    assert done.exit_code == 0, done.output
    assert "step1: 6 steps" in done.output
    assert f"the run is in {run}" in done.output
    done = meet("generate", str(run), "--level", "good=1.5,bad=-0.5", "--max-new-tokens", "3", "--limit", "2")
    assert done.exit_code == 0, done.output
    path = run / "completions" / "good1.5_bad-0.5-t0-p1-n3-seed0.jsonl"
    assert f"2 completions in {path}" in done.output
    assert json.loads(path.read_text().splitlines()[0])["level"] == {"good": 1.5, "bad": -0.5}
    again = meet("train", *config, "--out", str(run), "--quiet")
    assert again.exit_code == 1
    assert "holds a finished run" in again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "hh-met-lora"], "error: unknown recipe 'hh-met-lora'; did you mean 'hh-meet-lora'?"),
        (["train", "hh-meet-lora", "--batch.pears", "3"], "unknown key 'pears'; did you mean 'pairs'?"),
        (["generate", "nowhere"], "nowhere is not a run"),
        (["generate", "nowhere", "--level", "good=x"], "expected a name, or weights"),
    ],
)
def test_mistakes_end_in_one_line(words: list[str], message: str) -> None:
    done = meet(*words)
    assert done.exit_code == 1
    assert message in done.output
    assert "Traceback" not in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_usage() -> None:
    assert meet("train").exit_code == 2
    assert "name a recipe or give --config" in meet("train").output
    assert "meet train" in meet("train", "--help").output
    assert meet("--version").output.startswith("main, version") or "version" in meet("--version").output
