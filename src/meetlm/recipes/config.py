"""A run's whole configuration, put together from preset, recipe, file and overrides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import Place, check, merge, override, parse_overrides, read_yaml
from meetlm.controls.base import CONTROLS, ControlSettings
from meetlm.controls.build import AnyControlSettings
from meetlm.data.formats import FORMATS
from meetlm.data.levels import PAIR_LEVELS
from meetlm.data.settings import DataSettings
from meetlm.policy.loading import ModelSettings
from meetlm.recipes.names import preset_names, recipe_files, recipe_folder, recipe_names
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings


class FormatSettings(Settings):
    """How conversations become text."""

    system: Literal["auto", "none"] = Field(
        "auto", description="the chat template's automatic system message: kept and pinned, or left out"
    )


class RunConfig(Settings):
    """Everything that decides what a run does."""

    recipe: str = Field(description="name of the recipe, for the record")
    preset: str = Field("paper", description="rates, lengths and batch sizes: paper, or small for little data")
    seed: int = Field(0, description="of initial controls, data order and dropout")
    model: ModelSettings = ModelSettings()
    data: DataSettings
    format: FormatSettings = FormatSettings()
    control: AnyControlSettings
    optim: OptimSettings = OptimSettings()
    batch: BatchSettings = BatchSettings()
    stages: tuple[StageSettings, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages: two have one name among {', '.join(names)}, and with it one folder")
        for stage in self.stages:
            _check_stage(stage, self.control)
        used = {level for stage in self.stages for level in FORMATS[stage.format].levels}
        levels = tuple(level for level in PAIR_LEVELS if level in used)
        if self.control.levels != levels:
            formats = ", ".join(dict.fromkeys(stage.format for stage in self.stages))
            raise ValueError(
                f"control.levels is [{', '.join(self.control.levels)}]; the replies of the stages' formats ({formats}) "
                f"have the levels [{', '.join(levels)}], worst first"
            )
        return self


def _check_stage(stage: StageSettings, control: ControlSettings) -> None:
    """Refuse a stage that cannot be run with a control.

    Raises:
        ValueError: Says why.
    """
    kind, form = CONTROLS[control.kind], FORMATS[stage.format]
    if "control" in stage.train and not kind.has_parameters:
        nothing = "trains nothing" if stage.train == ("control",) else "would train the language model alone"
        raise ValueError(
            f"stage {stage.name!r} {nothing}: a control of kind {control.kind!r} has no parameters (train: [lm])"
        )
    if form.chains and not kind.has_slot:
        raise ValueError(
            f"stage {stage.name!r}: a chain has replies of several levels in one sequence, and a control of kind "
            f"{control.kind!r} has no slot to put before each; kinds text, soft-prompt and special-token have"
        )
    if form.chains and control.placement != "before_response":
        raise ValueError(
            f"stage {stage.name!r}: a chain has the control's slot before each response: control.placement: "
            f"before_response, not {control.placement}"
        )


def load_config(recipe: str | None, file: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the resolved configuration: preset under recipe under file under overrides.

    Args:
        recipe: A name of the package's recipes; ``None`` where the file has everything.
        file: A YAML file of the user's; it may name a recipe itself. Of a run's ``config.yaml`` its settings are taken.
        overrides: ``--a.b value`` or ``a.b=value``; they win.

    Raises:
        ConfigError: Names the file, line and key at fault, or the nearest name of an unknown one; or two of the
            overrides, or one and the file, contradict each other.
    """
    given, places = settings_in(file) if file else ({}, {})
    changes = dict(parse_overrides(overrides))
    own_preset = given.get("preset")
    given |= {key: changes[key] for key in ("preset", "recipe") if key in changes}
    if recipe is not None and given.get("recipe", recipe) != recipe:
        raise ConfigError(f"{file} is of recipe {given['recipe']!r}, not {recipe!r}; name one of them")
    recipe = recipe or given.get("recipe")
    if recipe in recipe_names():
        base, base_places = _compose(str(recipe))
        raw, places = merge({"recipe": recipe, **base}, given), {**base_places, **places}
    elif file is not None and recipe == given.get("recipe"):
        raw = {"recipe": recipe or file.stem, **given}
    else:
        raise ConfigError(f"unknown recipe {recipe!r}{nearest(str(recipe), recipe_names())}")
    if "control.kind" in changes:  # settings of another kind of control would not be known to this one
        raw = merge(raw, {"control": {"kind": changes["control.kind"]}})
    for key, text in parse_overrides(overrides):
        places[override(raw, key, text)] = f"override {key}"
    _check_everywhere(raw.get("optim"), changes)
    what = str(file) if file else f"recipe {recipe}"
    raw = _with_texts(raw)
    config = check(RunConfig, _with_preset(raw, places, what), places, what)
    if own_preset in preset_names() and config.preset != own_preset:
        same = check(RunConfig, _with_preset({**raw, "preset": own_preset}, places, what), places, what)
        if same == config.model_copy(update={"preset": own_preset}):
            raise ConfigError(
                f"override preset={config.preset}: {file} is of preset {own_preset} and gives every value that a "
                "preset would, so nothing would change; take batch and the stages' lr, epochs and min_steps out of "
                f"it, or begin with `meet config {config.recipe} --preset {config.preset}`"
            )
    return config


def settings_in(file: Path) -> tuple[dict[str, Any], dict[Place, str]]:
    """Return the settings in a file and where each key stands; those of a run where the file is its record.

    Raises:
        ConfigError: As of :func:`~meetlm.config.yaml_files.read_yaml`.
    """
    values, places = read_yaml(file)
    own = values.get("config")
    if isinstance(own, dict) and "data_sha256" in values:
        return own, {place[1:]: where for place, where in places.items() if place[0] == "config" and place[1:]}
    return values, places


def _check_everywhere(optim: Any, changes: Mapping[str, str]) -> None:
    """Refuse a rate or passes of one stage beside those for every stage, which would win.

    Raises:
        ConfigError: Names both.
    """
    for everywhere, own in (("lr", {"lr"}), ("epochs", {"epochs", "min_steps", "min-steps"})):
        value = optim.get(everywhere) if isinstance(optim, dict) else None
        of_one = [key for key in changes if key.startswith("stages.") and key.rpartition(".")[2] in own]
        if value is not None and of_one:
            raise ConfigError(
                f"override {of_one[0]}: optim.{everywhere}={value} is for every stage, this one too; "
                "give one of the two"
            )


def _compose(recipe: str) -> tuple[dict[str, Any], dict[Place, str]]:
    """Return a recipe: its method over its data set, and where each key stands."""
    raw: dict[str, Any] = {"preset": "paper"}
    places: dict[Place, str] = {}
    for part in recipe_files(recipe):
        values, found = read_yaml(part)
        raw, places = merge(raw, values), {**places, **found}
    return raw, places


def _with_texts(raw: dict[str, Any]) -> dict[str, Any]:
    """Give a hand-written control the data set's words for its placement, where it has none of its own."""
    texts = raw.pop("texts", None)
    control = raw.get("control")
    if isinstance(texts, dict) and isinstance(control, dict) and control.get("kind") == "text":
        words = texts.get(str(control.get("placement", "first")))
        given = control.get("prompts", {})
        if isinstance(words, dict) and isinstance(given, dict):
            return {**raw, "control": {**control, "prompts": {**words, **given}}}
    return raw


def _with_preset(raw: dict[str, Any], places: Mapping[Place, str], what: str) -> dict[str, Any]:
    """Put the preset's values below the ones given: batch sizes, and each stage's rates by what it trains.

    Two words of a stage refer to them: ``times: 2`` is twice the preset's epochs and least steps, ``control_lr:
    first-step`` its rate for a control alone. Values of a wrong type are left for the check to name.
    """
    name = str(raw.get("preset", "paper"))
    if name not in preset_names():
        place = places.get(("preset",), what)
        raise ConfigError(f"{place}: unknown preset {name!r}{nearest(name, preset_names())}")
    preset, _ = read_yaml(recipe_folder() / "presets" / f"{name}.yaml")
    control, optim, given = raw.get("control"), raw.get("optim"), raw.get("stages")
    kind = control.get("kind") if isinstance(control, dict) else None
    everywhere = optim.get("lr") if isinstance(optim, dict) else None
    below = merge({"batch": preset["batch"]}, raw)
    if not isinstance(given, list):
        return below
    passes = optim.get("epochs") if isinstance(optim, dict) else None
    passes = passes if isinstance(passes, int | float) and not isinstance(passes, bool) and passes > 0 else None
    if isinstance(optim, dict):  # they are in the stages then
        gone = {"lr"} if everywhere else set()
        gone |= {"epochs"} if passes else set()
        below["optim"] = {key: value for key, value in optim.items() if key not in gone}
    stages = [
        _stage_with_preset(one, preset, kind, everywhere, passes) if isinstance(one, dict) else one for one in given
    ]
    return {**below, "stages": stages}


def _stage_with_preset(
    stage: dict[str, Any], preset: dict[str, Any], kind: Any, everywhere: Any, passes: float | None
) -> dict[str, Any]:
    def defaults(trained: str) -> dict[str, Any]:
        return {**preset["stages"].get(trained, {}), **preset.get("by_control", {}).get(str(kind), {}).get(trained, {})}

    train, objective = stage.get("train"), stage.get("objective")
    trained = "+".join(sorted(map(str, train))) if isinstance(train, list) else ""
    below = defaults(trained)
    if not below:
        return stage
    if isinstance(objective, dict):
        below.update(preset.get("by_objective", {}).get(str(objective.get("kind")), {}).get(trained, {}))
    above = {key: value for key, value in stage.items() if key != "times"}
    times = stage.get("times", 1)
    if isinstance(times, bool) or not isinstance(times, int | float) or not 0 < times < math.inf:
        raise ConfigError(f"stage {stage.get('name')!r}: times is {times!r}; expected a number above 0")
    below["epochs"] = times * below["epochs"]
    if "min_steps" in below:
        below["min_steps"] = math.ceil(times * below["min_steps"])
    if passes:
        above.update(epochs=times * passes, min_steps=0)
    if above.get("control_lr") == "first-step":
        above["control_lr"] = defaults("control")["lr"]
    return {**below, **above, **({"lr": everywhere} if everywhere else {})}
