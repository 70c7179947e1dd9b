"""Sweeps and the search for rates: over a tiny model, real runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import Trainer

import meetlm.run.arm
from meetlm.cli import main
from meetlm.config.errors import ConfigError, DataError, RunError
from meetlm.data.prompts import read_prompts
from meetlm.data.settings import DataSettings
from meetlm.data.splits import read_splits
from meetlm.generation.settings import Sampling
from meetlm.recipes.config import load_config
from meetlm.run.aligned import load
from meetlm.run.arm import AfterTraining, ArmResult
from meetlm.run.folder import write_config
from meetlm.run.search import best_rates, search
from meetlm.run.stage_cache import stage_key
from meetlm.run.sweep import FORMAT, SHARED, TABLE, arm_configs, sweep
from meetlm.training.loop import StageTrainer
from reporters import RecordingReporter
from run_folders import local_model, write_pairs
from tiny import tiny_lm

THEN = AfterTraining(Sampling(max_new_tokens=4), prompts=3, keep_weights=False)
RECIPES = ("hh-meet-lora", "hh-meet-lora-first-step", "hh-coh-chain", "hh-sft", "hh-dpo")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides: a tiny model, 12 pairs, one epoch."""
    folder = tmp_path_factory.mktemp("data")
    files = [write_pairs(folder / f"{name}.jsonl", count) for name, count in (("train", 12), ("test", 6))]
    return [
        f"model.name={local_model(folder / 'lm', 'llama')}",
        "model.device=cpu",
        "data.path=null",
        f"data.train_file={files[0]}",
        f"data.eval_file={files[1]}",
        "preset=paper",
        "batch.pairs=4",
    ]


def changed(overrides: list[str], *changes: str) -> list[str]:
    """Return the overrides with other values."""
    keys = {change.partition("=")[0] for change in changes}
    return [*(override for override in overrides if override.partition("=")[0] not in keys), *changes]


def run(recipes: tuple[str, ...], folder: Path, overrides: list[str], seeds: tuple[int, ...] = (0,)) -> list[ArmResult]:
    results, failed = sweep(arm_configs(recipes, seeds, None, overrides), folder, THEN)
    assert failed == {}
    return results


def test_a_sweep_ends_with_a_table_and_drops_weights(tmp_path: Path, overrides: list[str]) -> None:
    results = run(RECIPES, tmp_path, overrides)
    assert [result.recipe for result in results] == list(RECIPES)
    table = (tmp_path / TABLE).read_text()
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:7]] == list(RECIPES)
    assert "on 6 held-out pairs" in table
    by_recipe = {result.recipe: result for result in results}
    assert by_recipe["hh-dpo"].after.by_sum is None and by_recipe["hh-coh-chain"].after.by_sum is not None
    assert all(result.num_completions == 3 for result in results)
    for arm in tmp_path.glob("*-seed0"):
        assert not list(arm.rglob("*.safetensors"))
        assert len(list((arm / "completions").glob("*.jsonl"))) == 1
        with pytest.raises(RunError, match="weights of the run were removed"):
            load(arm)
    assert not (tmp_path / SHARED).exists()


def test_shared_stages_are_trained_once_with_equal_results(tmp_path: Path, overrides: list[str]) -> None:
    together = run(("hh-meet-lora-first-step", "hh-meet-lora"), tmp_path / "together", overrides)
    alone = [run((result.recipe,), tmp_path / result.recipe, overrides)[0] for result in together]
    assert [(result.before, result.after) for result in together] == [(result.before, result.after) for result in alone]
    first, then = (tmp_path / "together" / f"{result.recipe}-seed0" / "step1" / "stage.json" for result in together)
    assert first.read_text() == then.read_text()  # the same seconds: step 1 was not trained again


def test_a_sweep_resumes_arm_by_arm(tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arms = arm_configs(("hh-sft", "hh-coh"), (0, 1), None, overrides)
    trained: list[str] = []
    right = meetlm.run.arm.execute

    def execute(config, folder, **more):  # type: ignore[no-untyped-def]
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(folder.name)
        right(config, folder, **more)

    monkeypatch.setattr(meetlm.run.arm, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        sweep(arms, tmp_path, THEN)
    assert trained == list(arms)[:2]
    trained.clear()
    sweep(arms, tmp_path, THEN)
    assert trained == list(arms)[2:]
    assert (tmp_path / TABLE).read_text().count("mean of 2") == 2
    trained.clear()
    reporter = RecordingReporter()
    sweep(arms, tmp_path, THEN, reporter=reporter)
    assert trained == []
    assert [line for line in reporter.messages if line.startswith("[")] == [
        f"[{number}/4] {name}: already finished" for number, name in enumerate(arms, 1)
    ]


def test_a_finished_arm_with_other_settings_is_refused_first(tmp_path: Path, overrides: list[str]) -> None:
    run(("hh-sft",), tmp_path, overrides)
    with pytest.raises(RunError, match="stages.sft.lr was 2e-05, is now 0.001"):
        sweep(arm_configs(("hh-coh", "hh-sft"), (0,), None, [*overrides, "optim.lr=1e-3"]), tmp_path, THEN)
    assert not (tmp_path / "hh-coh-seed0").exists()


def test_an_arm_that_was_stopped_is_checked_too(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after training, while it generates; and between its record and the dropping of its weights."""

    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    for function in ("write_completions", "remove_weights"):
        with monkeypatch.context() as patch:
            patch.setattr(meetlm.run.arm, function, stop)
            with pytest.raises(KeyboardInterrupt):
                run(("hh-sft",), tmp_path / function, overrides)
        with pytest.raises(RunError, match="stages.sft.lr was"):
            run(("hh-sft",), tmp_path / function, [*overrides, "optim.lr=1e-3"])
        (result,) = run(("hh-sft",), tmp_path / function, overrides)
        assert result.num_completions == 3
        assert not list((tmp_path / function).rglob("*.safetensors"))


def test_completions_of_other_settings_are_not_mixed(tmp_path: Path, overrides: list[str]) -> None:
    run(("hh-sft",), tmp_path, overrides)
    then = AfterTraining(Sampling(max_new_tokens=9), prompts=3, keep_weights=False)
    with pytest.raises(RunError, match="is finished with other completions"):
        sweep(arm_configs(("hh-sft",), (0,), None, overrides), tmp_path, then)


def test_arms_are_pinned_to_one_day(tmp_path: Path, overrides: list[str]) -> None:
    run(("hh-meet-lora-first-step",), tmp_path, overrides)
    spec = json.loads((tmp_path / FORMAT).read_text())
    (tmp_path / FORMAT).write_text(json.dumps({**spec, "date": "2001-02-03"}))
    run(("hh-coh",), tmp_path, overrides)
    pinned = yaml.safe_load((tmp_path / "hh-coh-seed0" / "config.yaml").read_text())["format_pinned"]
    assert pinned["date"] == "2001-02-03"


def test_memory_that_is_not_there_fails_one_arm(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = meetlm.run.arm.execute

    def execute(config, folder, **more):  # type: ignore[no-untyped-def]
        if config.recipe == "hh-sft":
            raise torch.OutOfMemoryError("none left")
        right(config, folder, **more)

    monkeypatch.setattr(meetlm.run.arm, "execute", execute)
    results, failed = sweep(arm_configs(("hh-sft", "hh-coh"), (0,), None, overrides), tmp_path, THEN)
    assert [result.recipe for result in results] == ["hh-coh"]
    assert failed == {"hh-sft-seed0": "OutOfMemoryError: none left"}


@pytest.mark.parametrize(
    ("text", "more", "said"),
    [
        ("control: {kind: lora}", [], "remove 'control', which each recipe sets"),
        ("recipe: hh-coh", [], "remove 'recipe', which each recipe sets"),
        ("", ["--seed", "3"], "seed=3: pass --seeds"),
    ],
)
def test_settings_that_arms_set_themselves_are_refused(text: str, more: list[str], said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text or "batch: {pairs: 4}")
    with pytest.raises(ConfigError, match=said):
        arm_configs(("hh-sft",), (0,), file, more)


def test_a_failed_arm_is_reported_and_the_others_continue(tmp_path: Path, overrides: list[str]) -> None:
    short = [*overrides, "data.max_length=1000"]  # a soft prompt of 100 does not fit beside the rows
    model = Path(overrides[0].partition("=")[2])
    longest = tmp_path / "lm"
    longest.mkdir()
    for file in model.iterdir():
        (longest / file.name).write_bytes(file.read_bytes())
    config = json.loads((longest / "config.json").read_text())
    (longest / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 120}))
    arms = arm_configs(("hh-meet-soft-prompt-n100", "hh-sft"), (0,), None, changed(short, f"model.name={longest}"))
    results, failed = sweep(arms, tmp_path / "sweep", THEN)
    assert [result.recipe for result in results] == ["hh-sft"]
    assert "the model has 120 positions" in failed["hh-meet-soft-prompt-n100-seed0"]
    assert "**hh-meet-soft-prompt-n100-seed0 failed**" in (tmp_path / "sweep" / TABLE).read_text()


@pytest.mark.parametrize(
    ("recipes", "said"),
    [
        (("hh-dpo", "tldr-dpo"), "different settings of 'data'"),
        (("hh-meet-lroa",), "unknown recipe 'hh-meet-lroa'; did you mean 'hh-meet-lora'"),
        (("xx-*",), "no recipe matches the pattern 'xx-\\*'"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(recipes: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        arm_configs(recipes, (0,), None, [])


def test_a_folder_with_other_files_is_refused(tmp_path: Path, overrides: list[str]) -> None:
    (tmp_path / "thesis.tex").touch()
    for command in ("sweep", "search"):
        result = CliRunner().invoke(main, [command, "hh-sft", *overrides, "--out", str(tmp_path)])
        assert result.exit_code == 1 and f"--out {tmp_path} holds other files (thesis.tex)" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_patterns_and_seeds() -> None:
    names = list(arm_configs(("hh-dpo*", "hh-dpo"), (0, 3), None, []))
    assert names == ["hh-dpo-seed0", "hh-dpo-seed3", "hh-dpo-paper-seed0", "hh-dpo-paper-seed3"]


def test_stage_keys_tell_all_that_decides() -> None:
    def key(recipe: str, *overrides: str, index: int = 0, data: str = "rows") -> str:
        return stage_key(load_config(recipe, None, overrides), data, index)

    first = key("hh-meet-lora")
    same = (
        key("hh-meet-lora-first-step"),
        key("hh-meet-lora", "stages.step2.lr=1"),
        key("hh-meet-lora", "batch.log_steps=9"),
    )
    assert set(same) == {first}
    changes = ("seed=1", "control.rank=8", "stages.step1.lr=1", "batch.pairs=2", "optim.warmup=0", "model.name=x")
    others = [key("hh-meet-lora", change) for change in changes]
    others += [key("hh-meet-lora", data="other rows"), key("hh-meet-lora", index=1), key("hh-meet-lora", index=-1)]
    assert len({first, *others}) == 1 + len(others)


def test_holdout_parts_prompts(tmp_path: Path) -> None:
    file = write_pairs(tmp_path / "all.jsonl", 10)
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, *(row.replace("bad", "worse") for row in rows)]) + "\n")  # two rows a prompt
    settings = DataSettings(source="hh", train_file=str(file), holdout=3)
    train, held = (read.rows for read in read_splits(settings))
    assert (len(train), len(held)) == (14, 6)
    assert not {e.group for e in train} & {e.group for e in held}
    read = read_prompts(settings).prompts
    assert [(row.prompt, row.chosen) for row in read] == [(row.prompt, row.best_and_worst[0]) for row in held]
    more = read_prompts(settings.model_copy(update={"holdout": 5})).prompts
    assert {e.prompt for e in held} < {e.prompt for e in more}
    with pytest.raises(
        DataError, match="leaves no row to train on; expected a number below the number of distinct prompts .10"
    ):
        read_splits(settings.model_copy(update={"holdout": 10}))


def test_search_gives_each_method_the_same_budget(tmp_path: Path, overrides: list[str]) -> None:
    recipes, folder = ("hh-meet-lora", "hh-sft"), tmp_path / "search"
    trials, failures = search(recipes, None, overrides, folder, trials=4, holdout=4)
    assert failures == {}
    assert [(trial.recipe, trial.stage.name) for trial in trials] == [("hh-meet-lora", "step1")] * 2 + [
        ("hh-meet-lora", "step2")
    ] * 2 + [("hh-sft", "sft")] * 4
    assert [trial.stage.lr for trial in trials if trial.stage.name == "sft"] == pytest.approx(
        [2e-5 / 9, 2e-5 / 3, 2e-5, 6e-5]
    )
    assert [
        sum(trial.is_best for trial in trials if trial.stage.name == stage) for stage in ("step1", "step2", "sft")
    ] == [
        1,
        1,
        1,
    ]
    sft = [trial for trial in trials if trial.stage.name == "sft"]
    assert min(sft, key=lambda trial: trial.after.nll).is_best and {trial.metric for trial in sft} == {"nll"}
    assert all(trial.after.pairs == 4 for trial in trials)
    settled = next(trial.stage.lr for trial in trials if trial.stage.name == "step1" and trial.is_best)
    second = [file.read_text() for file in folder.glob("hh-meet-lora-step2-*/config.yaml")]
    assert len(second) == 2 and all(f"lr: {settled}" in text for text in second)
    assert search(recipes, None, overrides, folder, trials=4, holdout=4)[0] == trials
    other = changed(overrides, "batch.pairs=2")
    with pytest.raises(RunError, match="batch.pairs was 4, is now 2"):
        search(("hh-sft",), None, other, folder, trials=4, holdout=4)
    best = best_rates(trials, ())
    assert list(best) == ["hh-meet-lora", "hh-sft"]
    assert best["hh-meet-lora"].startswith(f"--stages.step1.lr {settled:.3g} --stages.step2.lr ")
    assert not list(folder.rglob("*.safetensors"))


def test_a_rate_at_which_training_diverges_is_no_trial(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Trainer._get_grad_norm
    most = [3e-5]

    def norm(self: StageTrainer, *args: Any, **more: Any) -> Any:
        return math.nan if self.stage.lr > most[0] else right(self, *args, **more)

    monkeypatch.setattr(Trainer, "_get_grad_norm", norm)
    reporter = RecordingReporter()
    arguments: dict[str, Any] = {"trials": 4, "holdout": 4, "reporter": reporter}
    trials, _ = search(("hh-sft",), None, overrides, tmp_path / "search", **arguments)
    assert [trial.stage.lr for trial in trials] == pytest.approx([2e-5 / 9, 2e-5 / 3, 2e-5])
    assert [message for message in reporter.messages if "diverged" in message] == [
        "hh-sft-sft-6e-05: stage 'sft' has diverged: the gradients of step 1 have norm nan; use a lower learning rate "
        "(it is 6e-05)"
    ]
    assert not list((tmp_path / "search").rglob("*.safetensors"))
    monkeypatch.setattr(StageTrainer, "train", lambda *a, **k: pytest.fail("trained again"))
    assert search(("hh-sft",), None, overrides, tmp_path / "search", **arguments)[0] == trials
    assert len([message for message in reporter.messages if "diverged" in message]) == 2
    monkeypatch.undo()


def test_a_recipe_that_diverges_at_every_rate_fails_and_the_others_go_on(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Trainer._get_grad_norm

    def norm(self: StageTrainer, *args: Any, **more: Any) -> Any:
        return math.inf if self.stage.format == "chosen" else right(self, *args, **more)

    monkeypatch.setattr(Trainer, "_get_grad_norm", norm)
    out = tmp_path / "search"
    result = CliRunner().invoke(
        main,
        ["search", "hh-sft", "hh-coh", *overrides, "--trials", "2", "--holdout", "4", "--out", str(out), "--quiet"],
    )
    assert result.exit_code == 1, result.output
    assert "hh-sft failed: stage 'sft' diverged at every learning rate" in result.output
    assert "meet train hh-coh" in result.output and "meet train hh-sft" not in result.output
    records = json.loads((out / "search.json").read_text())
    assert [record["recipe"] for record in records] == ["hh-coh"] * 2


def test_search_refuses_a_budget_that_is_too_small() -> None:
    with pytest.raises(
        ConfigError, match="hh-dpo has 2 stages, and each needs at least two trials: pass --trials 4 or more"
    ):
        search(("hh-dpo",), None, [], Path("out"), trials=2, holdout=4)
    with pytest.raises(ConfigError, match="no preference accuracy"):
        search(("hh-dpo",), None, [], Path("out"), trials=4, holdout=4, metric="preference")


def test_commands(tmp_path: Path, overrides: list[str]) -> None:
    out = tmp_path / "sweep"
    options = ["--out", str(out), "--limit", "0", "--quiet"]
    result = CliRunner().invoke(main, ["sweep", "hh-sft", *overrides, *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "[1/1] hh-sft-seed0" in result.output and (out / TABLE).is_file()
    for words_, said in (
        (["sweep"], "missing argument RECIPE...: names, or patterns"),
        (["sweep", "hh-sft", "--seeds", "x"], "expected whole numbers"),
        (["search"], "missing argument RECIPE...: names, or patterns"),
        (["recipes", "show", "hh-cho"], "did you mean 'hh-coh"),
    ):
        refused = CliRunner().invoke(main, words_)
        assert refused.exit_code != 0 and said in refused.output
    listed = CliRunner().invoke(main, ["recipes"]).output
    assert "coh-chain" in listed and "tldr" in listed
    shown = CliRunner().invoke(main, ["recipes", "show", "tldr-dpo"]).output
    assert "dpo (beta 0.1)" in shown and ["sft", "lm", "chosen"] in [line.split()[:3] for line in shown.splitlines()]


def test_arms_begin_with_one_language_model(tmp_path: Path, overrides: list[str]) -> None:
    place = local_model(tmp_path / "lm", "llama")
    overrides = changed(overrides, f"model.name={place}")
    run(("hh-sft",), tmp_path / "sweep", overrides)
    tiny_lm("llama", seed=5, dtype=torch.float32).save_pretrained(place)
    arms = arm_configs(("hh-sft", "hh-coh"), (0,), None, overrides)
    results, failed = sweep(arms, tmp_path / "sweep", THEN)
    assert [result.recipe for result in results] == ["hh-sft"]
    assert "other runs of the sweep started from another language model" in failed["hh-coh-seed0"]


def test_the_record_of_a_run_is_no_file_for_a_sweep(tmp_path: Path) -> None:
    write_config(tmp_path, load_config("hh-meet-lora", None), "0" * 64)
    with pytest.raises(ConfigError, match="remove 'recipe', which each recipe sets"):
        arm_configs(("hh-coh", "hh-dpo"), (0,), tmp_path / "config.yaml", [])
