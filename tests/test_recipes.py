"""The recipes: each is the method that the paper compares, and what no stage could be trained with is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meetlm.cli import main
from meetlm.config.errors import ConfigError
from meetlm.data.levels import PAIR_LEVELS, LevelSpace
from meetlm.recipes.config import RunConfig, load_config
from meetlm.recipes.names import data_names, method_names, preset_names
from tiny import tiny_tokenizer

C, L, CL = ("control",), ("lm",), ("control", "lm")
BOTH, CHOSEN, PAIRWISE, CHAIN = ("conditional", "nll"), ("chosen", "nll"), ("pairwise", "dpo"), ("chain", "nll")
# A stage: format and objective, what it trains, lr, the control's own lr, epochs; the rates of preset paper.
Stage = tuple[tuple[str, str], tuple[str, ...], float, float | None, float]
FIRST, SECOND = (BOTH, C, 1e-3, None, 5), (BOTH, CL, 2e-5, None, 5)
TWICE, FAST = (BOTH, CL, 2e-5, None, 10), (BOTH, CL, 2e-5, 1e-3, 5)
METHODS: dict[str, tuple[dict[str, Any], list[Stage]]] = {
    "coh": ({"kind": "text", "placement": "first"}, [(BOTH, L, 2e-5, None, 5)]),
    "coh-2x": ({"kind": "text", "placement": "first"}, [(BOTH, L, 2e-5, None, 10)]),
    "coh-chain": ({"kind": "text", "placement": "before_response"}, [(CHAIN, L, 2e-5, None, 5)]),
    "dpo": ({"kind": "none"}, [(CHOSEN, L, 2e-5, None, 5), (PAIRWISE, L, 1e-6, None, 5)]),
    "dpo-paper": ({"kind": "none"}, [(PAIRWISE, L, 2e-5, None, 5)]),
    "sft": ({"kind": "none"}, [(CHOSEN, L, 2e-5, None, 5)]),
    "sft-lora": ({"kind": "lora", "rank": 4}, [(CHOSEN, C, 1e-3, None, 5), (CHOSEN, CL, 2e-5, None, 5)]),
    "special-token": ({"kind": "special-token"}, [SECOND]),
    **{
        f"meet-{name}": ({**control, "placement": "first"}, stages)
        for name, control, stages in [
            ("lora-r1", {"kind": "lora", "rank": 1}, [FIRST, SECOND]),
            ("lora-r64", {"kind": "lora", "rank": 64}, [FIRST, SECOND]),
            ("soft-prompt-n1", {"kind": "soft-prompt", "length": 1}, [FIRST, SECOND]),
            ("soft-prompt-n20", {"kind": "soft-prompt", "length": 20}, [FIRST, SECOND]),
            ("soft-prompt-n100", {"kind": "soft-prompt", "length": 100}, [FIRST, SECOND]),
        ]
    },
    **{
        f"meet-{name}{ablation}": ({**control, "placement": "first"}, stages)
        for name, control in (
            ("lora", {"kind": "lora", "rank": 4}),
            ("soft-prompt", {"kind": "soft-prompt", "length": 50}),
        )
        for ablation, stages in [
            ("", [FIRST, SECOND]),
            ("-first-step", [FIRST]),
            ("-second-step", [SECOND]),
            ("-second-step-2x", [TWICE]),
            ("-second-step-fast", [FAST]),
        ]
    },
}


def shape(config: RunConfig) -> list[Stage]:
    return [((s.format, s.objective.kind), s.train, s.lr, s.control_lr, s.epochs) for s in config.stages]


def test_there_are_these_methods_and_data_sets() -> None:
    assert method_names() == sorted(METHODS)
    assert {"hh", "tldr"} <= set(data_names())
    assert preset_names() == ["paper", "small"]


@pytest.mark.parametrize("data", ["hh", "tldr"])
@pytest.mark.parametrize("method", METHODS)
def test_each_recipe_is_its_method(method: str, data: str) -> None:
    control, stages = METHODS[method]
    config = load_config(f"{data}-{method}", None)
    assert (config.preset, config.recipe, config.batch.pairs) == ("paper", f"{data}-{method}", 64)
    assert shape(config) == stages
    assert control.items() <= config.control.model_dump().items()
    one_level = all(form in ("chosen", "pairwise") for (form, _), *_ in stages)
    assert config.control_levels(PAIR_LEVELS) == (LevelSpace.of_names("good") if one_level else PAIR_LEVELS)
    assert config.data.source == {"hh": "hh", "tldr": "summarize"}[data]
    assert {stage.min_steps for stage in config.stages} == {0}
    small = load_config(f"{data}-{method}", None, ["preset=small"])
    structure = [(format_name, train, control_lr is None) for format_name, train, _, control_lr, _ in stages]
    assert [
        (format_name, train, control_lr is None) for format_name, train, _, control_lr, _ in shape(small)
    ] == structure
    assert small.control == config.control
    for first, other in zip(config.stages, small.stages, strict=True):  # twice is twice in any preset
        assert (other.epochs, other.min_steps) == (first.epochs / 5, 100 * first.epochs / 5)


@pytest.mark.parametrize("preset", ["paper", "small"])
@pytest.mark.parametrize("data", ["hh", "tldr"])
def test_dpo_learning_rates_are_in_the_range_of_its_paper(data: str, preset: str) -> None:
    sft, dpo = load_config(f"{data}-dpo", None, [f"preset={preset}"]).stages
    assert dpo.objective.model_dump() == {"kind": "dpo", "beta": 0.1}
    assert 5e-7 <= dpo.lr <= 5e-6
    assert sft == load_config(f"{data}-sft", None, [f"preset={preset}"]).stages[0]
    (alone,) = load_config(f"{data}-dpo-paper", None, [f"preset={preset}"]).stages
    assert (alone.objective, alone.lr) == (dpo.objective, 2e-5)


def test_a_fast_arm_has_the_presets_rate_for_a_control_alone() -> None:
    for kind, rate in (("lora", 1e-3), ("soft-prompt", 5e-2)):
        (fast,) = load_config(f"hh-meet-{kind}-second-step-fast", None, ["preset=small"]).stages
        assert (fast.control_lr, fast.lr) == (rate, 2e-5)
        assert rate == load_config(f"hh-meet-{kind}", None, ["preset=small"]).stages[0].lr


def test_hand_written_words_are_the_papers() -> None:
    for data, noun in (("hh", "conversation"), ("tldr", "summary")):
        for method in ("coh", "coh-2x"):
            prompts = load_config(f"{data}-{method}", None).control.model_dump()["prompts"]
            assert prompts == {"good": f"A good {noun} is", "bad": f"A bad {noun} is"}
    chain = load_config("hh-coh-chain", None).control.model_dump()["prompts"]  # of Chain of Hindsight's own code
    assert chain == {"good": " A helpful answer:", "bad": " An unhelpful answer:"}
    assert load_config("hh-coh", None, ["control.placement=before_response"]).control.model_dump()["prompts"] == chain
    control = load_config("hh-coh", None, ["control.prompts={good: Well, bad: Ill}"]).control
    assert control.model_dump()["prompts"] == {"good": "Well", "bad": "Ill"}


REFUSED = [
    ("hh-coh-chain", ["control.kind=lora"], "control of kind 'lora' has no slot"),
    ("hh-coh-chain", ["control.kind=none"], "control of kind 'none' has no slot"),
    ("hh-coh-chain", ["control.placement=first"], "requires control.placement before_response, not first"),
    ("hh-coh", ["stages.tune.format=chain"], "requires control.placement before_response, not first"),
    ("hh-meet-lora", ["stages.step2.format=chain"], "stage 'step2': a chain requires a control slot before each reply"),
    (
        "hh-dpo",
        ["stages.dpo.format=chosen"],
        "objective 'dpo' compares two replies to one prompt at one level; set format: pairwise",
    ),
    ("hh-dpo", ["stages.dpo.format=conditional"], "set format: pairwise (it is 'conditional')"),
    ("hh-coh-chain", ["stages.tune.objective={kind: dpo}"], "set format: pairwise (it is 'chain')"),
    (
        "hh-dpo",
        ["stages.dpo.objective={kind: nll}"],
        "objective 'nll' would train the rejected reply like the chosen one",
    ),
    ("hh-sft", ["stages.sft.format=pairwise"], "puts both replies at the same level"),
    (
        "hh-coh",
        ["stages.tune.train=[control]"],
        "stage 'tune' trains nothing: a control of kind 'text' has no parameters",
    ),
    ("hh-coh", ["stages.tune.train=[control, lm]"], "stage 'tune' would train only the language model: a control of"),
    ("hh-sft", ["stages.sft.train=[control]"], "stage 'sft' trains nothing: a control of kind 'none'"),
    ("hh-meet-lora", ["control.kind=text"], "stage 'step1' trains nothing: a control of kind 'text' has no parameters"),
    ("hh-met-lora", [], "unknown recipe 'hh-met-lora'; did you mean 'hh-meet-lora'?"),
    ("tldr-speciall-token", [], "did you mean 'tldr-special-token'?"),
    ("hx-dpo-paper", [], "did you mean 'hh-dpo-paper'?"),
    ("hh", [], "`meet recipes` lists them"),
    (
        "hh-meet-lora",
        ["stages.step1.train=[contrl]"],
        "--stages.step1.train: expected 'control' or 'lm', got",
    ),
    ("hh-meet-lora", ["control.kind=lorra"], "error: --control.kind: unknown control 'lorra'; did you mean 'lora'?"),
    ("hh-meet-lora", ["data.path=a", "--data.path", "b"], "error: --data.path is set twice, to 'a' and 'b'"),
    ("hh-meet-lora", ["data.columns=3"], "error: --data.columns: expected a mapping of names to values, got"),
    ("hh-meet-lora", ["optim=3"], "error: --optim: expected a mapping of settings, got 3"),
    ("hh-dpo", ["stages.dpo.objective.kind=dppo"], "unknown objective 'dppo'; did you mean 'dpo'?"),
    ("hh-dpo", ["stages.dpo.objective.kind=[dpo]"], "unknown objective \"['dpo']\""),
    ("hh-coh", ["stages.tune.objective.beta=1"], "error: --stages.tune.objective.beta: "),
    ("hh-dpo", ["stages.dpo.objective.beta=0"], "objective.beta: expected a number greater than 0"),
    ("hh-coh", ["control.kind=3"], "unknown control '3'; known: lora"),
    ("hh-coh", ["control.placement=[first]"], "control.placement: expected 'first' or 'before_response'"),
    ("hh-sft", ["stages.sft.epochs=.inf"], "error: --stages.sft.epochs: expected a finite number"),
]


@pytest.mark.parametrize(("recipe", "args", "said"), REFUSED, ids=[" ".join((r, *w)) for r, w, _ in REFUSED])
def test_refused_before_any_model_is_looked_for(recipe: str, args: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["train", recipe, *args, "--model.name", "no/such-model"])
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.startswith("error: ")
    assert "such-model" not in result.output


@pytest.mark.parametrize("mark", [{"label": True}, {"score": 0.5}, {"level": "good"}])
def test_pointwise_rows_are_refused_before_the_model_is_loaded(mark: dict[str, Any], tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "lm")  # and no weights: loading them would say so
    file = tmp_path / "points.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "completion": " Ho", **mark}) + "\n")
    args = ["--data.source", "pairs", "--data.path", str(file), "--model.name", str(tmp_path / "lm")]
    result = CliRunner().invoke(main, ["train", "hh-dpo", *args, "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert result.output == (
        f"error: {file}:1: holds one reply, with a {next(iter(mark))}; "
        "expected 'chosen' and 'rejected'; or --data.source feedback, which reads replies with feedback\n"
    )
    assert not (tmp_path / "run").exists()


def test_epochs_of_every_stage_keep_the_ratio_of_2x_recipes() -> None:
    """And what is resolved reads back as itself: the passes are in the stages then."""
    for method, epochs in (("coh", [2]), ("coh-2x", [4]), ("meet-lora", [2, 2]), ("dpo", [2, 2])):
        config = load_config(f"hh-{method}", None, ["preset=small", "optim.epochs=2"])
        assert [stage.epochs for stage in config.stages] == epochs
        assert {stage.min_steps for stage in config.stages} == {0}
        assert config.optim.epochs is None
    with pytest.raises(ConfigError, match="optim.epochs: expected a number greater than 0"):
        load_config("hh-coh", None, ["optim.epochs=-1"])
