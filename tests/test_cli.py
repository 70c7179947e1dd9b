"""The command: what it prints, where it writes, how it fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from meetlm.cli import main
from meetlm.cli.console import ConsoleReporter
from meetlm.recipes.config import load_config
from run_folders import config_for


def meet(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def test_train_and_generate(tmp_path: Path) -> None:
    config_for(tmp_path, "llama", "lora")
    run = tmp_path / "run"
    config = ("--config", str(tmp_path / "config.yaml"))
    result = meet("train", *config, "--out", str(run), "--quiet", "--stages.step1.epochs", "2", "seed=3")
    assert result.exit_code == 0, result.output
    assert "step1: 6 steps" in result.output
    assert f"the run is in {run}" in result.output
    result = meet("generate", str(run), "--level", "good=1.5,bad=-0.5", "--max-new-tokens", "3", "--limit", "2")
    assert result.exit_code == 0, result.output
    assert "generate:" in result.stderr and "generate:" not in result.stdout
    assert "/2 [" in result.stderr
    path = run / "completions" / "good1.5_bad-0.5-t0-p1-n3-seed0-first2.jsonl"
    assert f"2 completions in {path}" in result.output
    assert json.loads(path.read_text().splitlines()[0])["level"] == {"good": 1.5, "bad": -0.5}
    odd = tmp_path / "odd.jsonl"
    odd.write_text(json.dumps({"prompt": "Hi\u2028there"}, ensure_ascii=False) + "\n")
    result = meet("generate", str(run), "--data.path", str(odd), "--max-new-tokens", "2")
    assert result.exit_code == 0 and "1 completion in" in result.output, result.output
    again = meet("train", *config, "--out", str(run), "--quiet")
    assert again.exit_code == 1
    assert "seed was 3, is now 0" in again.output
    again = meet("train", *config, "--out", str(run), "--quiet", "--stages.step1.epochs", "2", "seed=3")
    assert again.exit_code == 0, "a command that is repeated until it succeeds ends"
    assert f"{run} contains this run already, finished" in again.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "hh-met-lora"], "error: unknown recipe 'hh-met-lora'; did you mean 'hh-meet-lora'?"),
        (["train", "hh-meet-lora", "--batch.pears", "3"], "unknown key 'pears'; did you mean 'pairs'?"),
        (["generate", "nowhere"], "no such folder: nowhere; expected the folder of a run"),
        (["generate", "nowhere", "--level", "good="], "expected a name, a finite number, weights"),
        (["config", "hh-meet-lora", "--data.path"], "--data.path requires a value"),
        (["train", "--seed", "x", "hh-meet-lora"], "error: --seed: expected a whole number"),
        (["config", "--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["demo", "--quiet", "--out", "/dev/null/x"], "error: /dev/null/x: Not a directory"),
    ],
)
def test_mistakes_end_in_one_line(args: list[str], message: str) -> None:
    result = meet(*args)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "run", "--top-p", "0"],
        ["generate", "run", "--top-p", "1.1"],
        ["generate", "run", "--temperature", "-1"],
        ["generate", "run", "--batch-size", "0"],
        ["generate", "run", "--limit", "-1"],
        ["generate", "run", "--max-new-tokens", "0"],
        ["generate", "run", "--seed", "-1"],
        ["data", "--data.path", "x.jsonl", "--show", "-1"],
        ["data"],
        ["demo", "hh-meet-lora"],
        ["train", "hh-meet-lora", "hh-meet-soft-prompt"],
        ["config", "seed=1"],
        ["doctor", "/"],
        ["train", "hh-meet-lora", "--quite"],
    ],
    ids=" ".join,
)
def test_wrong_usage(args: list[str]) -> None:
    result = meet(*args)
    assert result.exit_code == 2
    assert "Error: " in result.output


def test_usage() -> None:
    assert meet("train").exit_code == 2
    assert "name a recipe" in meet("train").output
    assert "meet train" in meet("train", "--help").output
    assert meet("--version").output.startswith("main, version") or "version" in meet("--version").output
    listed = meet("--help").output.split("Commands:")[1].split("\n\n")[0]
    assert "..." not in listed
    assert all(line.endswith(".") for line in listed.strip().splitlines())


def commands_of(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*names, name)
        if isinstance(command, click.Group):
            yield from commands_of(command, (*names, name))


@pytest.mark.parametrize("names", list(commands_of(main)), ids=" ".join)
def test_every_command_has_help(names: tuple[str, ...]) -> None:
    result = meet(*names, "--help")
    assert result.exit_code == 0 and result.output.startswith("Usage: ")


def test_a_recipe_in_place_of_a_command() -> None:
    result = meet("recipes", "hh-dpo")
    assert result.exit_code == 2 and "meet recipes show hh-dpo" in result.output


def test_settings_that_the_help_of_train_names_are_settings() -> None:
    lines = [line.split() for line in meet("train", "--help").output.splitlines() if line.startswith("  --")]
    shown = [line[:2] for line in lines if line[0] not in ("--config", "--out", "--processes", "--quiet")]
    keys = [key for key, _ in shown]
    assert {"--preset", "--model.name", "--data.path", "--data.limit_train", "--batch.pairs", "--seed"} <= set(keys)
    result = meet("config", *(part for pair in shown for part in pair), "hh-meet-lora")
    assert result.exit_code == 0, result.output
    config = yaml.safe_load(result.output)
    assert (config["preset"], config["data"]["path"], config["seed"]) == ("small", "../hh-rlhf", 1)
    assert config["stages"][0]["lr"] == 3e-3


@pytest.mark.parametrize("recipe", ["hh-meet-lora", "tldr-coh-chain", "pairs-dpo", "hh-coh-2x", "pairs-special-token"])
def test_config_prints_what_train_would_read(recipe: str, tmp_path: Path) -> None:
    args = ["--preset", "small", "--data.subset", "'a: #b'", "--control.placement", "before_response"]
    result = meet("config", recipe, *args)
    assert result.exit_code == 0, result.output
    file = tmp_path / "mine.yaml"
    file.write_text(result.output)
    assert load_config(None, file) == load_config(recipe, None, args)
    assert result.output == meet("config", "--config", str(file)).output
    assert "  pairs: 8  # " in result.output
    assert "# Folder inside the data set." in result.output
    assert max(map(len, result.output.splitlines())) <= 112


def test_a_bar_shows_progress_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, shown in ((False, "sample:"), (True, "")):
        with ConsoleReporter(quiet=quiet).progress("sample", total=3) as progress:
            progress.advance(2)
            progress.add_total(1)
            progress.advance(2)
        captured = capsys.readouterr()
        assert shown in captured.err and captured.out == ""
        assert bool(captured.err) == bool(shown)
