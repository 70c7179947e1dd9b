"""Train recipes × seeds on the same data: one folder per run (an *arm*), and a table of all arms.

An interrupted sweep continues with the arm that it was interrupted in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from meetlm.config.errors import ConfigError, MeetError, nearest
from meetlm.config.files import locked, refuse_foreign_files, write_atomic
from meetlm.config.overrides import Override, parse_overrides
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.policy.loading import load_tokenizer
from meetlm.recipes.config import LISTING, RunConfig, load_config, settings_in
from meetlm.recipes.names import recipe_names
from meetlm.run.arm import AfterTraining, ArmResult, refuse_other_arm, run_arm
from meetlm.run.folder import read_lm
from meetlm.run.prepared import PreparedData, pinned_format, prepare_data
from meetlm.run.stage_cache import StageCache, stage_keys
from meetlm.run.table import markdown

SHARED = "shared"
TABLE = "table.md"
FORMAT = "format.json"


def arm_configs(
    recipes: Sequence[str], seeds: Sequence[int], file: Path | None, overrides: Sequence[str | Override]
) -> dict[str, RunConfig]:
    """Return the configuration of each recipe and seed by the name of its arm, checked before anything runs.

    Args:
        recipes: Names, or patterns such as ``hh-meet-*``.
        seeds: Seeds of each recipe's runs.
        file: YAML file of settings that override those of every recipe.
        overrides: Settings that override both.

    Raises:
        ConfigError: A pattern matches nothing, a recipe cannot be run, or two recipes have different data.
    """
    overrides = parse_overrides(overrides)
    _refuse_recipe_settings(file, overrides)
    names = dict.fromkeys(name for pattern in recipes for name in _matching_recipes(pattern))
    configs = {
        f"{name}-seed{seed}": load_config(name, file, [*overrides, Override("seed", str(seed))])
        for name in names
        for seed in seeds
    }
    first_name, first = next(iter(configs.items()))
    for name, config in configs.items():
        for block in ("data", "model", "format"):
            if getattr(config, block) != getattr(first, block):
                raise ConfigError(
                    f"{name} and {first_name} have different settings of {block!r}, but recipes are compared on the "
                    "same data and model: pass recipes of one data set, or options that set it for all"
                )
    return configs


def sweep(
    configs: Mapping[str, RunConfig], folder: Path, after: AfterTraining, *, reporter: Reporter = SILENT
) -> tuple[list[ArmResult], dict[str, str]]:
    """Run every arm that is not finished, and write ``table.md``.

    Stages that several arms share are trained once: step 1 of MEET and its ablation, SFT before DPO. The sweep
    continues after an arm that fails.

    Args:
        configs: Configurations on the same data, by name of the arm.
        folder: Folder of the sweep, with a folder for each arm.
        after: Work of each arm after its training.
        reporter: Shows messages and progress.

    Returns:
        The results in the order of ``configs``, and the reasons of failures by name of the arm.

    Raises:
        RunError: ``folder`` holds other files or is in use by another process, or the folder of an arm holds another
            configuration or other data.
        MeetError: The data cannot be used.
    """
    with locked(folder):
        data = shared_data(next(iter(configs.values())), folder, reporter)
        cache = StageCache(folder / SHARED)
        results: list[ArmResult] = []
        failures: dict[str, str] = {}
        for name, config in configs.items():  # before any arm is trained for hours
            refuse_other_arm(config, folder / name, after, data)
        for number, (name, config) in enumerate(configs.items(), 1):
            arm = folder / name
            reporter.message(
                f"[{number}/{len(configs)}] {name}" + (": already finished" if ArmResult.read(arm) else "")
            )
            lm_sha256 = read_lm([folder / arm_name for arm_name in configs])
            cache.keys_to_store = stage_keys(list(configs.values())[number:], data.key)
            try:
                results.append(run_arm(config, arm, after, cache, data, lm_sha256=lm_sha256, reporter=reporter))
            except (MeetError, RuntimeError) as error:  # torch raises RuntimeError, such as when memory runs out
                failures[name] = str(error) if isinstance(error, MeetError) else f"{type(error).__name__}: {error}"
                reporter.warning(f"{name} failed: {failures[name]}")
            write_atomic(folder / TABLE, markdown(results, failures))
            cache.remove_others()
        if not failures:
            shutil.rmtree(folder / SHARED, ignore_errors=True)
        return results, failures


def shared_data(config: RunConfig, folder: Path, reporter: Reporter) -> PreparedData:
    """Return the rows of all arms, read and filtered once, in the prompt format that ``folder`` has pinned.

    Raises:
        RunError: ``folder`` holds other files.
        MeetError: The data cannot be used.
    """
    file = folder / FORMAT
    if file.is_file():
        spec = FormatSpec.from_dict(json.loads(file.read_text()))
        prompt_format = PromptFormat(load_tokenizer(config.model.name), spec)
    else:
        refuse_foreign_files(folder)
        prompt_format = pinned_format(config, load_tokenizer(config.model.name))
    data = prepare_data(config.data, prompt_format)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(data.spec.to_dict(), indent=2) + "\n")
    for line in data.lines():
        reporter.message(line)
    return data


def _refuse_recipe_settings(file: Path | None, overrides: Sequence[Override]) -> None:
    """Refuse settings that a sweep takes from its recipes or from options of its command.

    Raises:
        ConfigError: Names the setting and the option to use.
    """
    in_file = settings_in(file)[0] if file else {}
    for key in ("recipe", "control", "stages", "seed"):
        if key in in_file:
            raise ConfigError(f"{file}: remove {key!r}, which each recipe sets (for seeds, pass --seeds or --seed)")
    for override in overrides:
        if override.key == "recipe":
            raise ConfigError("--recipe has no effect: name recipes as arguments")
        if override.key == "seed":
            raise ConfigError(f"seed={override.text}: pass --seeds (meet sweep) or --seed (meet search)")


def _matching_recipes(pattern: str) -> list[str]:
    """Return the recipes that match a name or pattern."""
    names = [name for name in recipe_names() if fnmatchcase(name, pattern)]
    if not names and any(character in pattern for character in "*?["):
        raise ConfigError(f"no recipe matches the pattern {pattern!r}; {LISTING}")
    if not names:
        raise ConfigError(f"unknown recipe {pattern!r}{nearest(pattern, recipe_names(), LISTING)}")
    return names
