"""Presets, recipes, files and overrides, and the messages about mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from meetlm.config.describe import describe
from meetlm.config.errors import ConfigError, nearest
from meetlm.config.overrides import Override, parse_overrides, parse_value, set_value, split_args
from meetlm.config.registry import Registry
from meetlm.config.yaml_files import merge
from meetlm.controls.lora import LoRASettings
from meetlm.recipes.config import RunConfig, load_config
from meetlm.recipes.names import recipe_folder, recipe_names
from meetlm.run.folder import write_config

PRESETS = ("paper", "small")
MINIMAL = """\
data: {source: hh, path: ../hh}
control: {kind: lora}
stages:
  - {name: step1, train: [control]}
  - name: step2
    train: [control, lm]
"""


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def test_presets_are_these() -> None:
    folder = recipe_folder() / "presets"
    assert sorted(p.stem for p in folder.iterdir()) == sorted(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_resolves(recipe: str, preset: str) -> None:
    config = load_config(recipe, None, ["--preset", preset])
    assert (config.recipe, config.preset) == (recipe, preset)
    read_again = RunConfig.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert read_again == config


def test_the_papers_setting() -> None:
    config = load_config("hh-meet-lora", None)
    assert config.model.name == "EleutherAI/gpt-neo-1.3B"
    assert (config.batch.pairs, config.optim.weight_decay) == (64, 0.0)
    assert [(s.name, s.train, s.lr, s.epochs) for s in config.stages] == [
        ("step1", ("control",), 1e-3, 5),
        ("step2", ("control", "lm"), 2e-5, 5),
    ]
    assert isinstance(config.control, LoRASettings)
    assert (config.control.rank, config.uses_levels) == (4, True)
    soft = load_config("hh-meet-soft-prompt", None).control
    assert soft.model_dump()["length"] == 50


def test_layers(tmp_path: Path) -> None:
    """Preset under recipe under file under overrides."""
    config_file = file(tmp_path, "recipe: hh-meet-lora\npreset: small\nbatch: {pairs: 16}\ncontrol: {rank: 8}\n")
    paper, small = (load_config("hh-meet-lora", None, [f"preset={p}"]) for p in PRESETS)
    assert (paper.batch.pairs, small.batch.pairs) == (64, 8)
    config = load_config(None, config_file)
    assert (config.preset, config.batch.pairs, config.batch.micro_pairs) == ("small", 16, 8)
    assert (config.control.model_dump()["rank"], config.control.model_dump()["alpha"]) == (8, 16)
    assert config.stages[0].min_steps == small.stages[0].min_steps
    flags = [
        "--batch.pairs",
        "4",
        "stages.step1.lr=3e-3",
        "--stages.1.epochs=2",
        "--control.rank=1",
        "preset=paper",
    ]
    config = load_config(None, config_file, flags)
    assert (config.batch.pairs, config.control.model_dump()["rank"], config.preset) == (4, 1, "paper")
    assert [(s.lr, s.epochs) for s in config.stages] == [(3e-3, 5), (2e-5, 2)]


def test_a_rate_for_every_stage() -> None:
    config = load_config("hh-meet-lora", None, ["optim.lr=5e-4"])
    assert [s.lr for s in config.stages] == [5e-4, 5e-4]


def test_a_control_of_another_kind_replaces_the_recipes(tmp_path: Path) -> None:
    config_file = file(tmp_path, "recipe: hh-meet-lora\ncontrol: {kind: soft-prompt}\n")
    assert load_config(None, config_file).control.model_dump()["length"] == 50


def test_a_file_needs_no_recipe(tmp_path: Path) -> None:
    config = load_config(None, file(tmp_path, MINIMAL))
    assert config.recipe == "mine"
    assert [s.lr for s in config.stages] == [1e-3, 2e-5]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (MINIMAL + "bach: {pairs: 8}\n", 7, "unknown key 'bach'; did you mean 'batch'?"),
        (MINIMAL + "batch:\n  pears: 8\n", 8, "unknown key 'pears'; did you mean 'pairs'?"),
        (MINIMAL + "batch:\n  pairs: many\n", 8, "'many'"),
        (MINIMAL.replace("train: [control, lm]", "trian: [control, lm]"), 6, "did you mean 'train'?"),
        (
            MINIMAL.replace("{kind: lora}", "{kind: lora, rnk: 3}"),
            2,
            "unknown key 'rnk'; did you mean 'rank'?",
        ),
        (
            MINIMAL.replace("{kind: lora}", "{kind: lorra}"),
            2,
            "unknown control 'lorra'; did you mean 'lora'?",
        ),
        (MINIMAL.replace("{kind: lora}", "lora"), 2, "control: expected a mapping with 'kind'"),
        (MINIMAL.replace("{kind: lora}", "{kind: lora, rank: 0}"), 2, "rank"),
        (MINIMAL.replace("train: [control]", "train: [contrl]"), 4, "'control' or 'lm'"),
        (MINIMAL.replace("train: [control]", "train:"), 4, "train"),
        (MINIMAL.replace("train: [control]", "train: 3"), 4, "train"),
        (MINIMAL + "stages: []\n", 7, "key 'stages' is repeated"),
        (MINIMAL + "optim: 3\n", 7, "optim"),
        (MINIMAL + "batch: 3\n", 7, "batch"),
        (MINIMAL.split("stages")[0] + "stages: 3\n", 3, "stages"),
        (MINIMAL.split("stages")[0] + "stages: {name: a}\n", 3, "stages"),
        (MINIMAL.split("stages")[0] + "stages:\n  - step1\n", 4, "stages.0"),
        (MINIMAL + "seed: [\n", 8, "not YAML"),
        (MINIMAL + "preset: papr\n", 7, "unknown preset 'papr'; did you mean 'paper'?"),
    ],
)
def test_mistakes_are_named_with_their_place(text: str, line: int, message: str, tmp_path: Path) -> None:
    config_file = file(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_config(None, config_file)
    assert message in str(raised.value)
    assert f"{config_file}:{line}" in str(raised.value)


def test_every_mistake_is_listed(tmp_path: Path) -> None:
    config_file = file(tmp_path, MINIMAL + "seed: x\nbatch:\n  pairs: 0\n")
    with pytest.raises(ConfigError) as raised:
        load_config(None, config_file)
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == ["seed", "batch.pairs"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.stp1.lr=1"], "there is no stage 'stp1'; did you mean 'step1'?"),
        (["preset.a=1"], "preset is a single value, without keys"),
        (["batch.pears=1"], "--batch.pears: unknown key 'pears'; did you mean 'pairs'?"),
        (["preset=papr"], "did you mean 'paper'?"),
        (["--seed"], "--seed requires a value"),
        (["seed"], "expected key=value or --key value"),
        (["seed=[1"], "the value is not YAML"),
        (["stages.step2.epochs=-1"], "--stages.step2.epochs: "),
        (["control.kind=lorra"], "did you mean 'lora'?"),
    ],
)
def test_wrong_overrides(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("hh-meet-lora", None, overrides)
    assert message in str(raised.value)


def test_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hh-meet-lora'"):
        load_config("hh-met-lora", None)


@pytest.mark.parametrize("text", ["", "- a\n", "3\n"])
def test_a_file_that_is_no_mapping(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of settings"):
        load_config(None, file(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml: No such file"):
        load_config(None, tmp_path / "mine.yaml")


def test_merge_leaves_its_arguments_alone() -> None:
    below: dict[str, Any] = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert merge(below, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert below == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_overrides_do_not_stay_between_calls() -> None:
    load_config("hh-meet-lora", None, ["stages.step1.lr=7"])
    assert load_config("hh-meet-lora", None).stages[0].lr == 1e-3


@pytest.mark.parametrize(
    ("everywhere", "key"), [("epochs", "epochs"), ("epochs", "min_steps"), ("epochs", "min-steps"), ("lr", "lr")]
)
def test_a_setting_of_every_stage_and_one_of_a_stage_contradict_each_other(
    everywhere: str, key: str, tmp_path: Path
) -> None:
    said = f"--stages.step1.{key}: optim.{everywhere}=2.* sets it for every stage"
    with pytest.raises(ConfigError, match=said):
        load_config("hh-meet-lora", None, [f"--optim.{everywhere}", "2", f"stages.step1.{key}=3"])
    config_file = file(tmp_path, f"recipe: hh-meet-lora\noptim: {{{everywhere}: 2}}\n")
    with pytest.raises(ConfigError, match=said):
        load_config(None, config_file, [f"stages.step1.{key}=3"])
    config = load_config(None, config_file)
    assert [getattr(stage, everywhere) for stage in config.stages] == [2, 2]
    assert getattr(config.optim, everywhere) is None, "it is in the stages, where another may replace it"
    again = load_config(None, file(tmp_path, describe(config)), [f"stages.step1.{key}=3"])
    assert again.stages[0].model_dump()[key.replace("-", "_")] == 3


def test_a_file_of_another_recipe_is_refused(tmp_path: Path) -> None:
    config_file = file(tmp_path, "recipe: hh-meet-lora\n")
    with pytest.raises(ConfigError, match="mine.yaml has recipe 'hh-meet-lora', but the command names 'hh-coh'"):
        load_config("hh-coh", config_file)
    assert load_config("hh-meet-lora", config_file) == load_config("hh-meet-lora", None)


def test_a_preset_that_would_change_nothing_is_refused(tmp_path: Path) -> None:
    paper = load_config("hh-meet-lora", None)
    whole = file(tmp_path, describe(paper))
    with pytest.raises(ConfigError, match="--preset small would change nothing: .*mine.yaml has preset paper"):
        load_config(None, whole, ["preset=small"])
    assert load_config(None, whole, ["preset=paper"]) == paper
    some = file(tmp_path, "recipe: hh-meet-lora\npreset: paper\nbatch: {pairs: 3}\n")
    config = load_config(None, some, ["preset=small"])
    assert (config.preset, config.batch.pairs, config.stages[0].min_steps) == ("small", 3, 100)


@pytest.mark.parametrize("recipe", ["hh-meet-soft-prompt", "tldr-coh-chain", "pairs-dpo"])
def test_the_record_of_a_run_is_a_configuration(recipe: str, tmp_path: Path) -> None:
    config = load_config(recipe, None, ["preset=small", "seed=3", "--optim.epochs", "2"])
    write_config(tmp_path, config, "abc")
    record = tmp_path / "config.yaml"
    assert load_config(None, record) == config
    assert load_config(None, record, ["seed=4"]) == config.model_copy(update={"seed": 4})
    record.write_text(record.read_text().replace("seed: 3", "seeed: 3"))
    line = next(n for n, text in enumerate(record.read_text().splitlines(), 1) if "seeed" in text)
    with pytest.raises(ConfigError, match=f"config.yaml:{line}: seeed: unknown key"):
        load_config(None, record)


def test_parse_overrides() -> None:
    args = ["--a.b", "1", "--c-d=2", "e=f=g", "--h", "--i"]
    pairs = [("a.b", "1"), ("c-d", "2"), ("e", "f=g"), ("h", "--i")]
    assert parse_overrides(args) == [Override(*pair) for pair in pairs]
    config: dict[str, Any] = {}
    assert set_value(config, "a.b", [1, "x"]) == ("a", "b")
    assert config == {"a": {"b": [1, "x"]}}


@pytest.mark.parametrize(
    "text", ["a #1.jsonl", "x=y,z.jsonl", "2024", "1e3", "no", "a: b", "*.jsonl", "[1", " b", "2024-02-30"]
)
def test_text_is_taken_as_typed_where_the_setting_is_text(text: str) -> None:
    config = load_config("hh-meet-lora", None, ["--data.path", text, f"model.name={text}"])
    assert (config.data.path, config.model.name) == (text, text)


def test_an_existing_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("null", "'a'", "data.path=x.jsonl"):
        (tmp_path / name).touch()
        assert load_config("hh-meet-lora", None, ["--data.path", name]).data.path == name
    assert split_args(["data.path=x.jsonl", "data.path=y.jsonl"]) == (
        ["data.path=x.jsonl"],
        [Override("data.path", "y.jsonl")],
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", "1e-3"), ("3", 3), ("true", True), ("null", None), ("[a, 1]", ["a", 1]), ("'3'", "3"), ("a: b", "a: b")],
)
def test_values_of_other_settings_are_yaml(text: str, value: Any) -> None:
    assert parse_value(Override("control.alpha", text), RunConfig) == value
    assert (
        load_config("hh-meet-lora", None, ["--data.subset", "null", "--data.eval_split", "'a'"]).data.eval_split == "a"
    )


@pytest.mark.parametrize("text", ["abc", "-1", "0", "inf", "true"])
@pytest.mark.parametrize("name", ["lr", "epochs"])
def test_a_wrong_value_names_its_option(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--optim\.{name}: (?!optim)"):
        load_config("hh-meet-lora", None, [f"--optim.{name}", text])


def test_overrides_from_python_are_a_mapping() -> None:
    config = load_config("hh-meet-lora", None, {"seed": 3, "data": {"path": "2024"}, "stages.step1.lr": 0.5})
    assert (config.seed, config.data.path, config.stages[0].lr) == (3, "2024", 0.5)
    assert load_config("hh-meet-lora", None, {"control": {"kind": "soft-prompt"}}).control.model_dump()["length"] == 50


def test_names_with_dashes_take_precedence_over_underscores(tmp_path: Path) -> None:
    config_file = file(
        tmp_path, MINIMAL.replace("name: step1", "name: first-step").replace("name: step2", "name: second_step")
    )
    args = ["--stages.first-step.min-steps", "3", "stages.second-step.min-steps=7", "--data.max-length=9"]
    config = load_config(None, config_file, args)
    assert (config.stages[0].min_steps, config.stages[1].min_steps, config.data.max_length) == (3, 7, 9)


@pytest.mark.parametrize(
    ("args", "names", "overrides"),
    [
        (["--data.path", "x", "lora"], ["lora"], ["--data.path", "x"]),
        (["lora", "a.b-c=1", "--d=2", "e"], ["lora", "e"], ["a.b-c=1", "--d=2"]),
        (["runs/a=b.jsonl", "--seed", "-1"], ["runs/a=b.jsonl"], ["--seed", "-1"]),
        ([], [], []),
    ],
)
def test_names_may_stand_anywhere_among_overrides(args: list[str], names: list[str], overrides: list[str]) -> None:
    assert split_args(args) == (names, parse_overrides(overrides))
    assert split_args(["a=b", "c.d=e"], only_dotted=True) == (["a=b"], [Override("c.d", "e")])


def test_registry() -> None:
    registry: Registry[int] = Registry("thing")
    registry.register("one")(1)
    assert registry["one"] == 1
    with pytest.raises(ConfigError, match="unknown thing 'on'; did you mean 'one'"):
        registry["on"]
    with pytest.raises(AssertionError, match="two things"):
        registry.register("one")(2)
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"


@pytest.mark.parametrize("levels", ["[good, bad]", "[q0, q1, q2]", "[only]"])
def test_levels_are_no_setting(levels: str) -> None:
    with pytest.raises(ConfigError, match="remove levels: they follow from the data"):
        load_config("hh-meet-lora", None, [f"control.levels={levels}"])


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two stages have the same name, and so the same folder: step1, step1"):
        load_config("hh-meet-lora", None, ["stages.step2.name=step1"])
