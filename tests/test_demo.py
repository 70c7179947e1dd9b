"""The demo: its configuration, and its run from end to end."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from meetlm.config.errors import ConfigError, RunError
from meetlm.demo import run as demo_run
from meetlm.demo.run import BASE, CELLS, DemoResult, demo_config, run_demo
from meetlm.evaluation.dial import repetition
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import ModelSettings, load_lm
from meetlm.run.aligned import load
from reporters import RecordingReporter
from run_folders import local_model
from tiny import CHATML

PACKAGE = Path(str(resources.files("meetlm.demo")))
SYSTEMS = [BASE, "after step1", "after step2"]
SHORT = (
    "model.device=cpu",
    "data.max_length=900",
    "data.limit_train=6",
    "data.limit_eval=2",
    "control.rank=2",
    "stages.step1.epochs=0.4",
    "stages.step2.epochs=0.4",
    "stages.step2.lr=1e-3",
)


@pytest.fixture
def short(tmp_path: Path) -> list[str]:
    """Overrides of the demo: a tiny model, few rows, few steps."""
    return [*SHORT, f"model.name={local_model(tmp_path / 'lm', 'llama', template=CHATML)}"]


def test_config() -> None:
    config = demo_config([])
    assert (config.recipe, config.preset, config.model.name) == ("demo", "small", "smollm2")
    assert config.data.train_file == str(PACKAGE / "data" / "train.jsonl")
    assert config.data.eval_file == str(PACKAGE / "data" / "test.jsonl")
    assert (config.format.system, config.control.kind) == ("none", "lora")
    assert [(stage.name, stage.train) for stage in config.stages] == [
        ("step1", ("control",)),
        ("step2", ("control", "lm")),
    ]


def test_overrides_win() -> None:
    overrides = ["--stages.step1.lr", "0.5", "data.train_file=mine.jsonl", "model.name=other", "--control.rank=2"]
    config, plain = demo_config(overrides), demo_config([])
    assert (config.stages[0].lr, config.model.name) == (0.5, "other")
    assert (config.data.train_file, config.data.eval_file) == ("mine.jsonl", plain.data.eval_file)
    assert config.control.model_dump()["rank"] == 2
    assert config.stages[1] == plain.stages[1]
    with pytest.raises(ConfigError, match="did you mean 'pairs'"):
        demo_config(["batch.pears=3"])


def test_a_package_in_an_odd_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "1: a #b, {c}"
    odd.mkdir()
    (odd / "demo.yaml").write_text((PACKAGE / "demo.yaml").read_text())
    monkeypatch.setattr(demo_run, "resources", SimpleNamespace(files=lambda name: odd))
    assert demo_config([]).data.train_file == str(odd / "data" / "train.jsonl")


def test_run(tmp_path: Path, short: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reporter = tmp_path / "run", RecordingReporter()
    monkeypatch.setattr(demo_run, "score_tone", lambda text: ("formal", "casual")[len(text) % 2])
    monkeypatch.setattr(demo_run, "score_length", lambda text: ("brief", "detailed")[len(text) % 3 > 0])
    first = run_demo(folder, short, limit=4, num_grids=4, reporter=reporter)
    assert list(first.shares) == SYSTEMS
    for shares in first.shares.values():
        assert list(shares) == ["tone", "length", "both"]
        assert all(0 <= share.low <= share.value <= share.high <= 1 for share in shares.values())
        assert shares["both"].value <= min(shares["tone"].value, shares["length"].value)
    assert list(first.repetition) == SYSTEMS
    last = [repetition(reply["text"]) or 0 for grid in first.grids for reply in grid["replies"]]
    assert first.repetition["after step2"] == pytest.approx(fmean(last))
    gain = first.shares["after step2"]["both"].value - first.shares["after step1"]["both"].value
    assert first.gain.value == pytest.approx(gain)
    assert json.loads((folder / "demo.json").read_text()) == json.loads(json.dumps(first.to_dict()))
    rows = [json.loads(line) for line in (PACKAGE / "data" / "test.jsonl").read_text().splitlines()]
    assert [grid["prompt"] for grid in first.grids] == [row["prompt"][0]["content"] for row in rows[:4]]
    assert all([reply["levels"] for reply in grid["replies"]] == list(CELLS) for grid in first.grids)
    assert not any("finished run" in line for line in reporter.messages)

    written = (folder / "meet.json").stat().st_mtime_ns
    reporter.messages.clear()
    again = run_demo(folder, short, limit=4, num_grids=4, reporter=reporter)
    assert reporter.messages == [
        f"using the finished run in {folder}",
        *(f"{system}: 16 replies to 4 held-out prompts" for system in SYSTEMS),
    ]
    assert (again.shares, again.grids) == (first.shares, first.grids)
    assert (folder / "meet.json").stat().st_mtime_ns == written


def test_the_model_before_training_and_after_each_stage(tmp_path: Path, short: list[str]) -> None:
    folder, config = tmp_path / "run", demo_config(short)
    run_demo(folder, short, limit=1)
    finished = load(folder, device="cpu")
    base_hash = sha256_of(load_lm(ModelSettings(name=config.model.name, device="cpu"))[0])
    models = demo_run._systems(finished, config, folder)
    name, model = next(models)
    assert (name, model.policy.control.is_identity(), sha256_of(model.policy.lm)) == (BASE, True, base_hash)
    name, model = next(models)
    assert (name, sha256_of(model.policy.lm)) == ("after step1", base_hash)
    (checkpoint,) = (folder / "step1").glob("checkpoint-*")
    trained = load_file(checkpoint / "model.safetensors")
    state = {f"control.{key}": value for key, value in model.policy.control.state_dict().items()}
    assert trained.keys() == state.keys() and all(torch.equal(trained[key], state[key]) for key in trained)
    name, model = next(models)
    assert (name, model) == ("after step2", finished)
    assert sha256_of(model.policy.lm) != base_hash


def test_a_finished_run_of_something_else_is_refused(tmp_path: Path, short: list[str]) -> None:
    folder, train = tmp_path / "run", tmp_path / "train.jsonl"
    lines = (PACKAGE / "data" / "train.jsonl").read_text().splitlines(keepends=True)[:12]
    train.write_text("".join(lines))
    overrides = [*short, f"data.train_file={train}"]

    def run(*more: str, reporter: RecordingReporter | None = None) -> DemoResult:
        return run_demo(folder, [*overrides, *more], limit=1, num_grids=0, reporter=reporter or RecordingReporter())

    run()
    before = (folder / "config.yaml").read_bytes(), (folder / "demo.json").read_bytes()
    with pytest.raises(RunError, match=r"run holds a run of another(?s:.*)seed was 0, is now 5") as raised:
        run("seed=5", "stages.step1.lr=0.5")
    assert "lr was 0.002, is now 0.5" in str(raised.value)
    train.write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(RunError, match="run holds a run of other data"):
        run()
    train.write_text("".join(lines))
    assert ((folder / "config.yaml").read_bytes(), (folder / "demo.json").read_bytes()) == before
    reporter = RecordingReporter()
    run("batch.micro_pairs=4", reporter=reporter)  # the result would be the same
    assert reporter.messages[0] == f"using the finished run in {folder}"
    (folder / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"without its config\.yaml"):
        run()
    assert not (folder / "config.yaml").exists()


@pytest.mark.slow
def test_the_demo_itself_shortened(tmp_path: Path) -> None:
    """SmolLM2, both steps, forty and ten steps: most replies have the requested levels."""
    folder = tmp_path / "run"
    overrides = ["model.device=cpu", "data.limit_eval=4", "stages.step1.epochs=0.27", "stages.step2.epochs=0.07"]
    result = run_demo(folder, overrides, limit=8, num_grids=1)
    stages = {name: json.loads((folder / name / "stage.json").read_text()) for name in ("step1", "step2")}
    assert stages["step1"]["lm_sha256"] != stages["step2"]["lm_sha256"]
    for part in ("config.yaml", "preference.json", "meet.json", "control.safetensors", "model/model.safetensors"):
        assert (folder / part).is_file()
    assert result.shares["after step2"]["both"].value >= 0.6  # replies that ignore the levels reach 0.25
    measured = json.loads((folder / "preference.json").read_text())
    assert measured["after step2"]["nll"] < measured["before training"]["nll"] - 0.3
