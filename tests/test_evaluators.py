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


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meetlm.run.evaluate.write_report", lambda evaluation, folder: [])


def evaluate(folder: Path, *args: object) -> str:
    """Compare two systems on the command line; return the output."""
    for name in "ab":
        line = {"prompt": "Is rice good?", "completion": f"rice {name}"}
        (folder / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    pair = {"prompt": "Is rice good?", "chosen": "rice is good", "rejected": "no"}
    (folder / "test.jsonl").write_text(json.dumps(pair) + "\n")
    places = [f"{name}={folder / name}.jsonl" for name in "ab"]
    usual = ["--baseline", "b", "--data.path", folder / "test.jsonl", "--out", folder / "out", "--quiet"]
    result = CliRunner().invoke(main, [str(arg) for arg in ("evaluate", *places, *usual, *args)])
    assert (result.exit_code == 0) == (folder / "out" / "evaluation.json").exists()
    return result.output


def test_the_input_form_of_a_reward_model_can_be_set(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "rm")
    assert "--reward.input text" in evaluate(tmp_path, "--reward", folder)
    assert "--reward.inptu: unknown key 'inptu'; did you mean 'input'?" in evaluate(
        tmp_path, "--reward", folder, "--reward.inptu", "text"
    )
    settings = ["--reward.input", "text", "--reward.max_length", "16", "reward.device=cpu"]
    assert "Win rates by reward" in evaluate(tmp_path, "--reward", folder, *settings)
    recorded = json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]["reward"]
    assert (recorded["reads"], recorded["max_length"], recorded["device"]) == ("text", 16, "cpu")


def test_json_has_the_rates_of_each_evaluator(tmp_path: Path) -> None:
    text = evaluate(tmp_path, "--json")
    (row,) = json.JSONDecoder().raw_decode(text[text.index("[\n") :])[0]
    assert (row["evaluator"], row["system"], row["baseline"]) == ("rouge-avg", "a", "b")
    assert row["win"]["value"] + row["lose"]["value"] + row["tie"]["value"] == 1 and row["num_prompts"] == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--judge.nonsense", "3"], "--judge.nonsense requires --judge"),
        (["--judge.base_url", "http://here/v1"], "--judge.base_url requires --judge"),
        (["--judge", "j", "--judge.nonsense", "3"], "--judge.nonsense: unknown key 'nonsense'"),
        (["--judge", "j", "--judge.max_tokens", "0"], "--judge.max_tokens: expected 1 or more"),
        (["--reward.input", "text"], "--reward.input requires --reward"),
        (["--judge", "j", "--judge.extra", "{"], "--judge.extra {: the value is not YAML"),
        (["--judge", "j", "--judge.extra"], "--judge.extra requires a value"),
        (["--judge", "j", "--judge.model", "k"], "--judge.model is not a setting: use --judge k"),
        (
            ["--tie-band", "0.4", "0.7"],
            "--tie-band: expected two bounds inside (0, 1) at equal distances from 0.5, such as 0.45 0.55, got 0.4 0.7",
        ),
        (["--judge", "j", "--judge.prompt", "nope"], "--judge.prompt nope: neither"),
        (["--judge", "j"], "the environment variable OPENAI_API_KEY is not set"),
    ],
)
def test_options_without_effect_are_refused_before_scoring(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(RewardModel, "load", lambda settings: pytest.fail("a reward model is loaded"))
    reward_too = ["--reward", "rm"] if "--reward.input" not in args else []
    assert message in " ".join(evaluate(tmp_path, *args, *reward_too).split())


def test_a_judge_with_stored_responses_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["--judge", "j", "--judge.key_env", "SOME_KEY", "--judge.base_url"]
    with JudgeServer(longer) as server:
        monkeypatch.setenv("SOME_KEY", "secret")
        assert "Win rates by judge" in evaluate(tmp_path, *args, server.url)
    (tmp_path / "out" / "evaluation.json").unlink()
    monkeypatch.delenv("SOME_KEY")
    assert "Win rates by judge" in evaluate(tmp_path, *args, server.url)


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    assert "holds other files (thesis.tex); choose another folder" in " ".join(evaluate(tmp_path).split())
