"""The records in a run's folder, and when a run may be resumed in it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.versions import git_hash
from meetlm.recipes.config import load_config
from meetlm.run.folder import pin_lm, read_data_settings, read_lm, read_meet, read_pinned, write_config

SHA, PINNED = "0" * 64, {"preamble": "today", "system": "auto", "stop": []}


def write(folder: Path, *overrides: str, sha: str = SHA, pinned: dict[str, object] | None = None) -> None:
    write_config(folder, load_config("hh-meet-lora", None, overrides), sha, pinned)


def test_every_key_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(RunError) as raised:
        write(tmp_path, "seed=5", "stages.step1.lr=0.5", "data.subset=harmless-base", "batch.micro_pairs=1")
    assert str(raised.value).splitlines()[1:] == [
        "  seed was 0, is now 5",
        '  data.subset was null, is now "harmless-base"',
        "  stages.step1.lr was 0.001, is now 0.5",
    ]
    with pytest.raises(RunError, match="control.rank was 4, is now absent"):
        write(tmp_path, "control={kind: soft-prompt}")
    with pytest.raises(RunError, match="a run of other data"):
        write(tmp_path, sha="1" * 64)
    objective = ("stages.step1.objective={kind: dpo}", "stages.step1.format=pairwise")
    with pytest.raises(RunError) as raised:
        write(tmp_path, "data.levels={scheme: quantiles, count: 3}", *objective, sha="1" * 64)
    assert sorted(str(raised.value).splitlines()[1:]) == [
        "  data.levels.count was null, is now 3",
        '  data.levels.scheme was "auto", is now "quantiles"',
        '  stages.step1.format was "conditional", is now "pairwise"',
        "  stages.step1.objective.beta was absent, is now 0.1",
        '  stages.step1.objective.kind was "nll", is now "dpo"',
        "  the rows used have changed: data_sha256 was 00000000…, is now 11111111…",
    ]


def test_how_a_run_is_carried_out_may_change(tmp_path: Path) -> None:
    write(tmp_path)
    first = yaml.safe_load((tmp_path / "config.yaml").read_text())
    changes = ("batch.micro_pairs=2", "batch.save_steps=7", "batch.log_steps=3", "batch.report_to=[wandb]")
    write(tmp_path, *changes, "model.device=cpu", "model.gradient_checkpointing=true")
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert record["config"]["batch"]["save_steps"] == 7
    assert {**record, "config": 0} == {**first, "config": 0}
    (tmp_path / "meet.json").touch()
    write(tmp_path, "model.device=cuda")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == record, "a finished run stays as it is"


def test_a_run_of_another_version_continues_or_names_it(tmp_path: Path) -> None:
    write(tmp_path)
    record = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del record["config"]["batch"]["log_steps"], record["config"]["data"]["holdout"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    write(tmp_path)  # a setting that the earlier version lacked has its default
    record["config"]["stages"][0]["times"] = 2
    record["versions"]["meetlm"] = "0.0.7"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(RunError, match="holds a run of meetlm 0.0.7, whose settings this version cannot read"):
        write(tmp_path)


def test_the_format_is_pinned_once(tmp_path: Path) -> None:
    assert read_pinned(tmp_path / "run") is None
    write(tmp_path / "run")
    assert read_pinned(tmp_path / "run") is None
    write(tmp_path / "run", pinned=PINNED)
    write(tmp_path / "run", pinned={**PINNED, "preamble": "tomorrow"})
    write(tmp_path / "run")
    assert read_pinned(tmp_path / "run") == PINNED


def test_data_settings_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        read_data_settings(tmp_path)
    write(tmp_path)
    assert read_data_settings(tmp_path).source == "hh"
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("max_length:", "longest:"))
    with pytest.raises(ConfigError, match="unknown key 'longest'"):
        read_data_settings(tmp_path)


def test_a_meet_json_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "meet.json").write_text(json.dumps({"levels": [], "runs": 3}))
    with pytest.raises(RunError, match="written by another version of meetlm"):
        read_meet(tmp_path)


def git(folder: Path, *args: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    return subprocess.run(["git", *who, "-C", str(folder), *args], check=True, capture_output=True, text=True).stdout


def test_the_recorded_commit_is_that_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "src" / "meetlm"
    vendored = tmp_path / "env" / "meetlm"
    for folder in (package, vendored):
        folder.mkdir(parents=True)
        (folder / "a.py").write_text("")
    assert git_hash(package) is None
    git(tmp_path, "init", "-q")
    assert git_hash(package) is None, "there is no commit yet"
    git(tmp_path, "add", "src", "env")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert git_hash(package) == commit
    assert git_hash(vendored) is None, "this repository is somebody else's"
    (tmp_path / "notes.md").write_text("beside the code")
    assert git_hash(package) == commit
    (package / "a.py").write_text("changed")
    assert git_hash(package) == f"{commit}-dirty"


def test_a_run_resumes_from_its_initial_language_model(tmp_path: Path) -> None:
    write(tmp_path)
    assert read_lm([tmp_path, tmp_path / "none"]) is None
    with pytest.raises(RunError, match="other runs of the sweep started from another .*abababab…, now 00000000…"):
        pin_lm(tmp_path, "0" * 64, "ab" * 32)
    assert read_lm([tmp_path]) is None
    pin_lm(tmp_path, "0" * 64, "0" * 64)
    write(tmp_path, "batch.save_steps=7")
    pin_lm(tmp_path, "0" * 64)
    assert read_lm([tmp_path / "none", tmp_path]) == "0" * 64
    with pytest.raises(
        RunError, match="the run started from another language model; 'EleutherAI/gpt-neo-1.3B' has changed"
    ):
        pin_lm(tmp_path, "1" * 64)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_meet_json_gives_a_one_line_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "meet.json").write_text(text)
    with pytest.raises(RunError, match=r"meet\.json is damaged"):
        read_meet(tmp_path)
