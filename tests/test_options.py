"""Options of evaluation that cannot be meant, or would say nothing, are refused before anything is read or trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meetlm.cli import main
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import RewardTraining
from meetlm.generation.sampling import Sampling

HERE = str(Path(__file__))


def refused(words: list[str]) -> str:
    """Give a command; return what it says on refusing."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code in (1, 2) and not isinstance(done.exception, ValueError), done.output
    return " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "a.jsonl", "--baseline", "a", "--temperature"],
        ["generate", "run", "--temperature"],
        ["sweep-temperature", "a", "b", "--baseline", "b", "--temperatures"],
    ],
)
def test_numbers_that_are_none(words: list[str], number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused([*words, number])
    assert any(what in said for what in ("not a finite number", "numbers that are not negative", "not in the range"))
    assert not list(tmp_path.iterdir())


def test_a_rate_of_zero_is_not_the_default(tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text('{"prompt": "Hi", "chosen": "Good", "rejected": "Bad"}\n')
    words = ["reward", "train", "--data.path", str(data), "--out", str(tmp_path / "rm"), "--lr", "0"]
    assert "--lr: expected a number greater than 0" in refused(words)


def test_settings_take_no_infinity() -> None:
    for change in ({"lr": float("inf")}, {"epochs": float("nan")}):
        with pytest.raises(ValueError, match="finite number|greater than 0"):
            RewardTraining.model_validate({"data": {"source": "pairs", "path": "p"}, **change})
    with pytest.raises(ValueError, match="finite number"):
        Sampling(temperature=float("inf"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.subset", "harmless-base"], "--data.subset requires --data.path"),
        (["--data.source", "hh"], "--data.source requires --data.path"),
        (["--data.path", HERE, "--data.subset", "x"], f"--data.subset has no effect: --data.path {HERE} is a file"),
        (["--data.path", HERE, "--data.eval_split", "x"], f"--data.eval_split has no effect: --data.path {HERE} is a"),
        (["--data.path", HERE, "--data.holdout", "3"], "--data.holdout has no effect on held-out prompts"),
        (["--data.path", "-"], "--data.path -: data cannot be read from standard input; pass a file"),
        (["--tie-band", "0.45", "0.55"], "--tie-band requires --reward"),
    ],
)
def test_options_in_vain(words: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardModel, "load", lambda settings: pytest.fail("a reward model is loaded"))
    assert told in refused(["evaluate", "a.jsonl", "--baseline", "a", *words])


def test_a_mistyped_run_is_named(tmp_path: Path) -> None:
    nowhere, folder, file = tmp_path / "rnu", tmp_path / "folder", tmp_path / "a.jsonl"
    folder.mkdir()
    file.write_text('{"prompt": "p", "completion": "c"}\n')
    words = ["evaluate", str(file), "--baseline"]
    assert f"{nowhere} is neither a run's folder nor a file" in refused([*words, "rnu", str(nowhere)])
    assert f"{folder} is a folder, but not a run" in refused([*words, "folder", str(folder)])
    assert "pass the held-out prompts as --data.path" in refused([*words, "a"])
    assert "--baseline b: no such system; known: a" in refused([*words, "b"])
