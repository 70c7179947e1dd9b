"""A run's whole configuration, put together from preset, recipe, file and overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import Place, check, merge, override, parse_overrides, read_yaml
from meetlm.controls.base import CONTROLS
from meetlm.controls.build import AnyControlSettings
from meetlm.data.levels import PAIR_LEVELS
from meetlm.data.settings import DataSettings
from meetlm.policy.loading import ModelSettings
from meetlm.recipes.names import preset_names, recipe_folder, recipe_names
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
        if self.control.levels != PAIR_LEVELS:
            raise ValueError(
                f"control.levels is [{', '.join(self.control.levels)}]; pairs have the levels "
                f"[{', '.join(PAIR_LEVELS)}], worst first"
            )
        for stage in self.stages:
            if stage.train == ("control",) and not CONTROLS[self.control.kind].trains:
                raise ValueError(
                    f"stage {stage.name!r} trains nothing: a control of kind {self.control.kind!r} has no parameters "
                    f"(leave the stage out: stages=[{{name: step2, train: [lm]}}])"
                )
        return self


def load_config(recipe: str | None, file: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the resolved configuration: preset under recipe under file under overrides.

    Args:
        recipe: A name of the package's recipes; ``None`` where the file has everything.
        file: A YAML file of the user's; it may name a recipe itself.
        overrides: ``--a.b value`` or ``a.b=value``; they win.

    Raises:
        ConfigError: Names the file, line and key at fault, or the nearest name of an unknown one.
    """
    given, places = read_yaml(file) if file else ({}, {})
    for key, text in parse_overrides(overrides):
        if key in ("preset", "recipe"):
            given[key] = text
    recipe = recipe or given.get("recipe")
    if recipe in recipe_names():
        base, base_places = read_yaml(recipe_folder() / f"{recipe}.yaml")
        raw, places = merge({"recipe": recipe, **base}, given), {**base_places, **places}
    elif file is not None and recipe == given.get("recipe"):
        raw = {"recipe": recipe or file.stem, **given}
    else:
        raise ConfigError(f"unknown recipe {recipe!r}{nearest(str(recipe), recipe_names())}")
    kinds = [text for key, text in parse_overrides(overrides) if key == "control.kind"]
    if kinds:  # settings of another kind of control would not be known to this one
        raw = merge(raw, {"control": {"kind": kinds[-1]}})
    for key, text in parse_overrides(overrides):
        places[override(raw, key, text)] = f"override {key}"
    what = str(file) if file else f"recipe {recipe}"
    return check(RunConfig, _with_preset(raw, places, what), places, what)


def _with_preset(raw: dict[str, Any], places: Mapping[Place, str], what: str) -> dict[str, Any]:
    """Put the preset's values below the ones given: batch sizes, and each stage's rates by what it trains.

    Values of a wrong type are left for the check to name.
    """
    name = str(raw.get("preset", "paper"))
    if name not in preset_names():
        place = places.get(("preset",), what)
        raise ConfigError(f"{place}: unknown preset {name!r}{nearest(name, preset_names())}")
    preset, _ = read_yaml(recipe_folder() / "presets" / f"{name}.yaml")
    control = raw.get("control")
    kind = control.get("kind") if isinstance(control, dict) else None
    optim, given = raw.get("optim"), raw.get("stages")
    everywhere = optim.get("lr") if isinstance(optim, dict) else None
    stages = []
    for stage in given if isinstance(given, list) else []:
        train = stage.get("train") if isinstance(stage, dict) else None
        trained = "+".join(sorted(map(str, train))) if isinstance(train, list) else ""
        defaults = dict(preset["stages"].get(trained, {}))
        defaults.update(preset.get("by_control", {}).get(kind, {}).get(trained, {}))
        stages.append({**defaults, **stage, **({"lr": everywhere} if everywhere else {})} if defaults else stage)
    below = merge({"batch": preset["batch"]}, raw)
    return {**below, "stages": stages} if isinstance(given, list) else below
