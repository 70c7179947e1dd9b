"""Recipes × seeds on the same data: each arm in its own folder, resumable arm by arm, one table at the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from meetlm.config.errors import ConfigError, MeetError, nearest
from meetlm.config.files import write_atomic
from meetlm.config.overrides import Override, parse_overrides
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.policy.loading import load_tokenizer
from meetlm.recipes.config import RunConfig, load_config, settings_in
from meetlm.recipes.names import recipe_names
from meetlm.run.arm import AfterTraining, Arm, ArmResult, check_arm, run_arm
from meetlm.run.folder import read_lm
from meetlm.run.prepared import PreparedData, pinned_format, prepare_data
from meetlm.run.share import StageShare, common_stages, stage_key
from meetlm.run.table import markdown

SHARED = "shared"
TABLE = "table.md"
FORMAT = "format.json"


def arms_of(
    recipes: Sequence[str], seeds: Sequence[int], file: Path | None, overrides: Sequence[str | Override]
) -> list[Arm]:
    """Return an arm for each recipe and seed, checked before anything runs.

    Args:
        recipes: Names, or patterns such as ``hh-meet-*``.
        seeds: Seeds of each recipe's runs.
        file: YAML file of settings over every recipe.
        overrides: Settings over that.

    Raises:
        ConfigError: A pattern matches nothing, a recipe cannot be run, or two recipes have different data.
    """
    overrides = parse_overrides(overrides)
    _refuse_recipe_settings(file, overrides)
    names = list(dict.fromkeys(name for pattern in recipes for name in _matching(pattern)))
    arms = [
        Arm(f"{name}-seed{seed}", load_config(name, file, [*overrides, Override("seed", str(seed))]))
        for name in names
        for seed in dict.fromkeys(seeds)
    ]
    for arm in arms[1:]:
        first = arms[0].config
        for block in ("data", "model", "format"):
            if getattr(arm.config, block) != getattr(first, block):
                raise ConfigError(
                    f"{arm.name} has other settings of {block!r} than {arms[0].name}; a sweep compares methods on the "
                    "same data and model (pass recipes of one data set, or set both)"
                )
    return arms


def sweep(
    arms: Sequence[Arm],
    folder: Path,
    then: AfterTraining,
    *,
    reporter: Reporter = SILENT,
) -> tuple[list[ArmResult], dict[str, str]]:
    """Run every arm that is not finished, and write ``table.md``.

    Stages that arms have in common are trained once: step 1 of MEET and its ablation, SFT before DPO. The sweep
    continues after an arm that fails.

    Args:
        arms: Arms on the same data.
        folder: Folder of the sweep, with a folder for each arm.
        then: What follows each arm's training.
        reporter: Shows what is being done.

    Returns:
        The results in the order of ``arms``, and the reasons of failures by name of the arm.

    Raises:
        RunError: The folder of an arm holds a run of another configuration or other data.
        MeetError: The data cannot be used.
    """
    data = data_of(arms[0].config, folder)
    for line in data.lines():
        reporter.message(line)
    share = StageShare(folder / SHARED, common_stages([arm.config for arm in arms], data.key))
    results: list[ArmResult] = []
    failures: dict[str, str] = {}
    for arm in arms:  # refuse foreign folders before hours are spent on other arms
        check_arm(arm, folder / arm.name, then, data)
    for number, arm in enumerate(arms, 1):
        place = folder / arm.name
        reporter.message(f"[{number}/{len(arms)}] {arm.name}" + (": finished before" if ArmResult.read(place) else ""))
        lm_sha256 = read_lm([folder / other.name for other in arms])
        try:
            results.append(run_arm(arm, place, then, share, data, lm_sha256=lm_sha256, reporter=reporter))
        except (MeetError, RuntimeError) as error:  # torch raises RuntimeError, such as when memory runs out
            failures[arm.name] = str(error) if isinstance(error, MeetError) else f"{type(error).__name__}: {error}"
            reporter.warning(f"{arm.name} failed: {failures[arm.name]}")
        write_atomic(folder / TABLE, markdown(results, failures))
        share.keep_only(
            {stage_key(other.config, data.key, n) for other in arms[number:] for n in range(len(other.config.stages))}
        )
    if not failures:
        shutil.rmtree(folder / SHARED, ignore_errors=True)
    return results, failures


def data_of(config: RunConfig, folder: Path) -> PreparedData:
    """Return the rows of all arms, read and filtered once, in the prompt format that ``folder`` has pinned."""
    tokenizer, file = load_tokenizer(config.model.name), folder / FORMAT
    if file.is_file():
        prompt_format = PromptFormat(tokenizer, FormatSpec.from_dict(json.loads(file.read_text())))
    else:
        prompt_format = pinned_format(config, tokenizer)
    data = prepare_data(config.data, prompt_format)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(data.spec.to_dict(), indent=2) + "\n")
    return data


def _refuse_recipe_settings(file: Path | None, overrides: Sequence[Override]) -> None:
    """Refuse settings that recipes or options of the command decide.

    Raises:
        ConfigError: Names the setting and what to do.
    """
    in_file = settings_in(file)[0] if file else {}
    for key in ("recipe", "control", "stages", "seed"):
        if key in in_file:
            raise ConfigError(f"{file}: remove {key!r}: here each recipe has its own (seeds: --seeds or --seed)")
    for override in overrides:
        if override.key == "recipe":
            raise ConfigError("--recipe has no effect: name recipes as arguments")
        if override.key == "seed":
            raise ConfigError("--seed has no effect on a sweep: pass --seeds")


def _matching(pattern: str) -> list[str]:
    known = recipe_names()
    names = [name for name in known if fnmatchcase(name, pattern)]
    if not names and any(character in pattern for character in "*?["):
        raise ConfigError(f"no recipe matches the pattern {pattern!r}; `meet recipes` lists them")
    if not names:
        raise ConfigError(f"unknown recipe {pattern!r}{nearest(pattern, known)}")
    return names
