"""The options of who decides: what is read from them, and what is refused before anything is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from judge_server import JudgeServer, longer
from meetlm.cli import main
from meetlm.evaluation.reward import RewardModel
from reward_models import folder_of


def evaluate(folder: Path, *words: object) -> str:
    """Compare two systems as a user would; return what is said."""
    for name in "ab":
        line = {"prompt": "Is rice good?", "completion": f"rice {name}"}
        (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    pair = {"prompt": "Is rice good?", "chosen": "rice is good", "rejected": "no"}
    (folder / "test.jsonl").write_text(json.dumps(pair) + "\n")
    places = [f"{name}={folder / name}.jsonl" for name in "ab"]
    usual = ["--baseline", "b", "--data.path", folder / "test.jsonl", "--out", folder / "out", "--quiet"]
    done = CliRunner().invoke(main, [str(word) for word in ("evaluate", *places, *usual, *words)])
    assert (done.exit_code == 0) == (folder / "out" / "evaluation.json").exists()
    return done.output


def test_how_a_reward_model_reads_can_be_said(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "rm")
    assert "--reward-set input=text" in evaluate(tmp_path, "--reward", folder)
    assert "unknown key 'inptu'; did you mean 'input'?" in evaluate(
        tmp_path, "--reward", folder, "--reward-set", "inptu=text"
    )
    words = ["--reward", folder, "--reward-set", "input=text", "--reward-set", "max_length=16"]
    said = evaluate(tmp_path, *words, "--reward-set", "device=cpu")
    assert "reward: a against b" in said
    recorded = json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]["reward"]
    assert (recorded["reads"], recorded["max_length"], recorded["device"]) == ("text", 16, "cpu")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--judge-set", "nonsense=3"], "--judge-set is given, and no --judge"),
        (["--judge-url", "http://here/v1"], "--judge-url is given, and no --judge"),
        (["--judge-prompt", "dialogue"], "--judge-prompt is given, and no --judge"),
        (["--judge-prompts", "128"], "--judge-prompts is given, and no --judge"),
        (["--reward-set", "input=text"], "--reward-set is given, and no --reward"),
        (["--judge", "j", "--judge-set", "extra={"], "'extra={': the value is not YAML"),
        (["--judge", "j", "--judge-set", "extra"], "'extra': expected KEY=VALUE"),
        (["--judge", "j", "--judge-set", "model=k"], "'model=k': expected as --judge"),
        (["--judge", "j", "--judge-set", "retries=1", "--judge-set", "retries=2"], "retries is given twice"),
        (["--scorer", "m:f", "--scorer", "m:g", "--scorer", "m:f"], "'m:f' is given twice"),
        (["--tie-band", "0.4", "0.7"], "tie band [0.4, 0.7]"),
        (["--judge", "j", "--judge-prompt", "nope"], "judge prompt 'nope'"),
        (["--judge", "j"], "the environment variable OPENAI_API_KEY is not set"),
    ],
)
def test_options_in_vain_are_refused_before_anything_is_scored(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(RewardModel, "load", lambda settings: pytest.fail("a reward model is loaded"))
    reward_too = ["--reward", "rm"] if "--reward-set" not in words else []
    assert told in " ".join(evaluate(tmp_path, *words, *reward_too).split())


def test_a_judge_whose_answers_are_kept_may_need_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--judge", "j", "--judge-set", "key_env=SOME_KEY", "--judge-url"]
    with JudgeServer(longer) as server:
        monkeypatch.setenv("SOME_KEY", "secret")
        assert "judge: a against b" in evaluate(tmp_path, *words, server.url)
    (tmp_path / "out" / "evaluation.json").unlink()
    monkeypatch.delenv("SOME_KEY")
    assert "judge: a against b" in evaluate(tmp_path, *words, server.url)
