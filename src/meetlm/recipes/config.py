"""The configuration of a run, from a preset, a recipe, a file and overrides; later values replace earlier ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.overrides import KeyPath, Override, flatten, parse_overrides, parse_value, set_value
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import merge, read_yaml, validate
from meetlm.controls.base import CONTROLS, ControlSettings
from meetlm.controls.build import AnyControlSettings
from meetlm.data.formats import FORMATS
from meetlm.data.levels import LevelSpace
from meetlm.data.settings import DataSettings
from meetlm.policy.loading import ModelSettings
from meetlm.recipes.names import preset_names, recipe_files, recipe_folder, recipe_names
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

LISTING = "`meet recipes` lists them"


class FormatSettings(Settings):
    """How conversations are formatted as text."""

    system: Literal["auto", "none"] = Field(
        "auto", description="the chat template's automatic system message: auto keeps it, none leaves it out"
    )
    reasoning: bool = Field(
        False,
        description="replies begin with reasoning (<think>…), so the chat template's empty think block is left out",
    )


class RunConfig(Settings):
    """All settings that determine the result of a run."""

    recipe: str = Field(description="name of the recipe")
    preset: str = Field("paper", description="learning rates, epochs and batch sizes: paper, or small for little data")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of initial controls, data order and dropout")
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
            raise ValueError(f"stages: two stages have the same name, and so the same folder: {', '.join(names)}")
        for stage in self.stages:
            _check_stage(stage, self.control)
        return self

    @property
    def uses_levels(self) -> bool:
        """Whether a stage trains replies at different levels."""
        return any(FORMATS[stage.format].uses_levels for stage in self.stages)

    def control_levels(self, data_levels: LevelSpace) -> LevelSpace:
        """Return the levels of the control: the levels of the data, or only the best one if no stage uses levels."""
        return data_levels if self.uses_levels else data_levels.best_only


def _check_stage(stage: StageSettings, control: ControlSettings) -> None:
    """Refuse a stage that cannot be trained with a control.

    Raises:
        ValueError: The stage does not fit; the message has the reason.
    """
    kind, form = CONTROLS[control.kind], FORMATS[stage.format]
    if "control" in stage.train and not kind.has_parameters:
        problem = "trains nothing" if stage.train == ("control",) else "would train only the language model"
        raise ValueError(
            f"stage {stage.name!r} {problem}: a control of kind {control.kind!r} has no parameters (set train: [lm])"
        )
    if form.chains and not kind.has_slot:
        raise ValueError(
            f"stage {stage.name!r}: a chain requires a control slot before each reply, but a control of kind "
            f"{control.kind!r} has no slot; use the kind text, soft-prompt or special-token"
        )
    if form.chains and control.placement != "before_response":
        raise ValueError(
            f"stage {stage.name!r}: a chain requires control.placement before_response, not {control.placement}"
        )


def load_config(
    recipe: str | None, file: Path | None = None, overrides: Sequence[str | Override] | Mapping[str, Any] = ()
) -> RunConfig:
    """Return the configuration: the preset's values, replaced by the recipe's, the file's and then the overrides.

    Args:
        recipe: Name of a recipe; ``None`` if the file has all settings or names a recipe itself.
        file: A YAML file of settings, or the ``config.yaml`` of a run.
        overrides: As on the command line (``--a.b value`` or ``a.b=value``), or a mapping of dotted keys or nested
            mappings to values.

    Raises:
        ConfigError: A setting is wrong (the message names the file, line and key, or the option), or two settings
            contradict each other.
    """
    in_file, locations = settings_in(file) if file else ({}, {})
    changes = _read_overrides(overrides)
    preset_in_file = in_file.get("preset")
    in_file |= {key: changes[key] for key in ("preset", "recipe") if key in changes}
    if recipe is not None and in_file.get("recipe", recipe) != recipe:
        other = f"--recipe {in_file['recipe']}" if "recipe" in changes else f"{file} has recipe {in_file['recipe']!r}"
        raise ConfigError(f"{other}, but the command names {recipe!r}: use the same recipe, or name only one")
    recipe = recipe or in_file.get("recipe")
    if recipe in recipe_names():
        of_recipe, recipe_locations = _compose(str(recipe))
        raw, locations = merge({"recipe": recipe, **of_recipe}, in_file), {**recipe_locations, **locations}
    elif file is not None and recipe == in_file.get("recipe"):
        raw = {"recipe": recipe or file.stem, **in_file}
    else:
        raise ConfigError(f"unknown recipe {recipe!r}{nearest(str(recipe), recipe_names(), LISTING)}")
    if "control.kind" in changes:  # drops the settings of another kind of control
        raw = merge(raw, {"control": {"kind": changes["control.kind"]}})
    for key, value in changes.items():
        path = set_value(raw, key, value)
        locations = {loc: text for loc, text in locations.items() if loc[: len(path)] != path} | {path: f"--{key}"}
    _refuse_double_rates(raw.get("optim"), changes)
    origin = str(file) if file else f"recipe {recipe}"
    raw = _with_text_prompts(raw)
    config = validate(RunConfig, _with_preset(raw, locations, origin), locations, origin)
    if preset_in_file in preset_names() and config.preset != preset_in_file:
        with_file_preset = _with_preset({**raw, "preset": preset_in_file}, locations, origin)
        if validate(RunConfig, with_file_preset, locations, origin) == config.model_copy(
            update={"preset": preset_in_file}
        ):
            raise ConfigError(
                f"--preset {config.preset} would change nothing: {file} has preset {preset_in_file} and sets every "
                "value of a preset itself; remove batch and the stages' lr, epochs and min_steps from it, or start "
                f"from `meet config {config.recipe} --preset {config.preset}`"
            )
    return config


def _read_overrides(overrides: Sequence[str | Override] | Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key."""
    if isinstance(overrides, Mapping):
        return dict(flatten(overrides))
    return {override.key: parse_value(override, RunConfig) for override in parse_overrides(overrides)}


def settings_in(file: Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the settings in a file and the location of each; the file may be the ``config.yaml`` of a run.

    Raises:
        ConfigError: As of :func:`~meetlm.config.yaml_files.read_yaml`.
    """
    values, locations = read_yaml(file)
    run_settings = values.get("config")
    if isinstance(run_settings, dict) and "data_sha256" in values:
        return run_settings, {loc[1:]: text for loc, text in locations.items() if loc[0] == "config" and loc[1:]}
    return values, locations


def _refuse_double_rates(optim: Any, changes: Mapping[str, Any]) -> None:
    """Refuse a learning rate or epochs of one stage together with those of every stage, which would override it.

    Raises:
        ConfigError: Both are set; the message names them.
    """
    for name, stage_fields in (("lr", {"lr"}), ("epochs", {"epochs", "min_steps", "min-steps"})):
        value = optim.get(name) if isinstance(optim, dict) else None
        stage_keys = [key for key in changes if key.startswith("stages.") and key.rpartition(".")[2] in stage_fields]
        if value is not None and stage_keys:
            raise ConfigError(f"--{stage_keys[0]}: optim.{name}={value} sets it for every stage; set only one of them")


def _compose(recipe: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Return the settings of a recipe (of its data set and of its method), and the location of each key."""
    raw: dict[str, Any] = {"preset": "paper"}
    locations: dict[KeyPath, str] = {}
    for part in recipe_files(recipe):
        values, part_locations = read_yaml(part)
        raw, locations = merge(raw, values), {**locations, **part_locations}
    return raw, locations


def _with_text_prompts(raw: dict[str, Any]) -> dict[str, Any]:
    """Add the data set's hand-written prompts for the placement, if the control is text without prompts."""
    text_prompts = raw.pop("text_prompts", {})
    control = raw.get("control")
    if not isinstance(control, dict) or control.get("kind") != "text" or not isinstance(text_prompts, dict):
        return raw
    prompts = text_prompts.get(str(control.get("placement", "first")))
    return {**raw, "control": merge({"prompts": prompts}, control)} if prompts else raw


def _with_preset(raw: dict[str, Any], locations: Mapping[KeyPath, str], origin: str) -> dict[str, Any]:
    """Add the preset's batch sizes, learning rates, epochs and minimum steps where ``raw`` does not set them.

    A value of a wrong type is left unchanged, so that validation reports it.
    """
    name = str(raw.get("preset", "paper"))
    if name not in preset_names():
        location = locations.get(("preset",), origin)
        raise ConfigError(f"{location}: unknown preset {name!r}{nearest(name, preset_names())}")
    preset, _ = read_yaml(recipe_folder() / "presets" / f"{name}.yaml")
    raw = merge({"batch": preset["batch"]}, raw)
    recipe_values = raw.pop("presets", {}).get(name, {})
    control, optim, stages = raw.get("control"), raw.get("optim"), raw.get("stages")
    if not isinstance(stages, list):
        return raw
    kind = control.get("kind") if isinstance(control, dict) else None
    rates: dict[str, Any] = {}
    if isinstance(optim, dict):
        rates = {key: float(optim[key]) for key in ("lr", "epochs") if _is_positive(optim.get(key))}
        raw["optim"] = {key: value for key, value in optim.items() if key not in rates}
    raw["stages"] = [
        _stage_with_preset(stage, preset["stages"], recipe_values, kind, rates) if isinstance(stage, dict) else stage
        for stage in stages
    ]
    return raw


def _stage_with_preset(
    stage: dict[str, Any], table: dict[str, Any], recipe_values: dict[str, Any], kind: Any, rates: dict[str, Any]
) -> dict[str, Any]:
    """Return a stage with the preset's values, replaced by the recipe's, the stage's own and then ``rates``.

    Args:
        stage: The stage in the recipe or file.
        table: The preset's values by trained parameters, optionally with a kind of control or objective.
        recipe_values: The recipe's values for this preset, by name of the stage.
        kind: Kind of the control.
        rates: ``lr`` and ``epochs`` of every stage, if the user sets them.
    """
    train, objective = stage.get("train"), stage.get("objective")
    trained = "+".join(sorted(map(str, set(train)))) if isinstance(train, list) else ""
    if trained not in table:  # validation reports it; the defaults avoid further messages
        return {**table["lm"], **stage}
    objective_kind = objective.get("kind") if isinstance(objective, dict) else None
    base = merge(table[trained], table.get(f"{trained} ({kind})", {}))
    defaults = {**base, **table.get(f"{trained} ({objective_kind})", {})}
    defaults |= recipe_values.get(str(stage.get("name")), {})
    values = {**stage, **rates}
    if "epochs" in rates:  # a recipe with twice the epochs keeps that ratio
        values |= {"epochs": rates["epochs"] * defaults["epochs"] / base["epochs"], "min_steps": 0}
    return {**defaults, **values}


def _is_positive(value: Any) -> bool:
    """Return whether a value is a positive number, or text with one, since YAML reads ``1e-4`` as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return 0 < float(value) < math.inf
    except ValueError:
        return False
