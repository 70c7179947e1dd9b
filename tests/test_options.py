"""Options of evaluation that are impossible or have no effect are refused before anything is read or trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meetlm.cli import main
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import EvaluationSettings, RewardTraining
from meetlm.generation.settings import Sampling
from meetlm.training.stage import StageSettings

HERE = str(Path(__file__))


def refusal(args: list[str]) -> str:
    """Return the message of a command that is refused."""
    result = CliRunner().invoke(main, args)
    assert result.exit_code in (1, 2) and not isinstance(result.exception, ValueError), result.output
    return " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "x"])
@pytest.mark.parametrize(
    "args",
    [
        ["evaluate", "a.jsonl", "--baseline", "a", "--temperature"],
        ["generate", "run", "--temperature"],
        ["sweep-temperature", "a", "b", "--baseline", "b", "--temperatures"],
    ],
)
def test_impossible_temperatures(args: list[str], number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal([*args, number])
    reasons = ("finite", "expected 0 or more", "expected a number", "numbers of 0 or more")
    assert f"'{number}'" in message and any(reason in message for reason in reasons)
    assert "--temperature" in message
    assert not list(tmp_path.iterdir())


def test_a_rate_of_zero_is_not_the_default(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "Hi", "chosen": "Good", "rejected": "Bad"}\n')
    args = ["reward", "train", "--data.path", str(data), "--out", str(tmp_path / "rm"), "--lr", "0"]
    assert "--lr: expected a number greater than 0" in refusal(args)


def test_settings_take_no_infinity() -> None:
    for change in ({"lr": float("inf")}, {"epochs": float("nan")}):
        with pytest.raises(ValueError, match="finite number|greater than 0"):
            RewardTraining.model_validate({"data": {"source": "pairs", "path": "p"}, **change})
    with pytest.raises(ValueError, match="finite number"):
        Sampling(temperature=float("inf"))
    with pytest.raises(ValueError, match="finite number"):
        EvaluationSettings(tie_band=(float("nan"), 0.5))
    with pytest.raises(ValueError, match="finite number"):
        StageSettings(name="tune", train=("lm",), lr=float("inf"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.subset", "harmless-base"], "--data.subset requires --data.path"),
        (["--data.source", "hh"], "--data.source requires --data.path"),
        (["--data.path", HERE, "--data.subset", "x"], f"--data.subset has no effect: --data.path {HERE} is a file"),
        (["--data.path", HERE, "--data.eval_split", "x"], f"--data.eval_split has no effect: --data.path {HERE} is a"),
        (["--data.path", HERE, "--data.holdout", "3"], "--data.holdout has no effect on held-out prompts"),
        (["--data.path", HERE, "--data.limit_eval", "3"], "--data.limit_eval has no effect on held-out prompts"),
        (["--data.path", "-"], "--data.path -: data cannot be read from standard input; pass a file"),
        (["--tie-band", "0.4", "x", "--reward", "rm"], "--tie-band: expected a number"),
    ],
)
def test_options_without_effect(args: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardModel, "load", lambda settings: pytest.fail("a reward model is loaded"))
    assert message in refusal(["evaluate", "a.jsonl", "--baseline", "a", *args])


def test_a_tie_band_requires_a_reward_model(tmp_path: Path) -> None:
    data = tmp_path / "p.jsonl"
    data.write_text('{"prompt": "Hi"}\n')
    args = ["evaluate", "a.jsonl", "--baseline", "a", "--data.path", str(data), "--tie-band", "0.45", "0.55"]
    assert "--tie-band requires --reward" in refusal(args)


def test_a_sweep_over_temperatures_takes_no_data() -> None:
    """It compares the held-out prompts of its first run."""
    assert "No such option '--data.path'" in refusal(["sweep-temperature", "a", "--baseline", "b", "--data.path", HERE])


def test_a_mistyped_run_is_named(tmp_path: Path) -> None:
    nowhere, folder, file = tmp_path / "rnu", tmp_path / "folder", tmp_path / "a.jsonl"
    folder.mkdir()
    file.write_text('{"prompt": "p", "completion": "c"}\n')
    args = ["evaluate", str(file), "--baseline"]
    assert f"{nowhere} is neither a run's folder nor a file" in refusal([*args, "rnu", str(nowhere)])
    assert f"{folder} is a folder, but not a run" in refusal([*args, "folder", str(folder)])
    assert "pass the held-out prompts as --data.path" in refusal([*args, "a"])
    assert "--baseline b: no such system; known: a" in refusal([*args, "b"])
