"""Recipes × seeds over the same data: each arm in its own folder, resumable arm by arm, one table at the end."""

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
    """Return an arm for every recipe and seed, checked before anything runs.

    Args:
        recipes: Names, or patterns such as ``hh-meet-*``.
        seeds: One run for each.
        file: A YAML file of settings over every recipe.
        overrides: Settings over that.

    Raises:
        ConfigError: A pattern fits nothing, a recipe cannot be run, or two are not over the same data.
    """
    overrides = parse_overrides(overrides)
    _refuse_own(file, overrides)
    names = list(dict.fromkeys(name for pattern in recipes for name in _matching(pattern)))
    arms = [
        Arm(f"{name}-seed{seed}", load_config(name, file, [*overrides, Override("seed", str(seed))]))
        for name in names
        for seed in dict.fromkeys(seeds)
    ]
    for arm in arms[1:]:
        first = arms[0].config
        for what in ("data", "model", "format"):
            if getattr(arm.config, what) != getattr(first, what):
                raise ConfigError(
                    f"{arm.name} has other settings of {what!r} than {arms[0].name}; a sweep compares methods over the "
                    "same data and model (give one data set's recipes, or override both)"
                )
    return arms


def sweep(
    arms: Sequence[Arm],
    folder: Path,
    then: AfterTraining,
    *,
    reporter: Reporter = SILENT,
) -> tuple[list[ArmResult], dict[str, str]]:
    """Run every arm that is not done, and write ``table.md``.

    What arms have in common is trained once: step 1 for MEET and its ablation, SFT for DPO after it. An arm that fails
    is said and left; the others go on.

    Args:
        arms: Over the same data.
        folder: Of the sweep; an arm's is in it.
        then: What follows each arm's training.
        reporter: Shows what is being done.

    Returns:
        The results in the order of ``arms``, and what went wrong by the name of an arm.

    Raises:
        RunError: A done arm has another configuration or other data.
        MeetError: The data cannot be used.
    """
    data = data_of(arms[0].config, folder)
    for line in data.lines():
        reporter.message(line)
    share = StageShare(folder / SHARED, common_stages([arm.config for arm in arms], data.key))
    results: list[ArmResult] = []
    failed: dict[str, str] = {}
    for arm in arms:  # what has begun must be of this sweep, before hours are spent on the rest
        check_arm(arm, folder / arm.name, then, data)
    for number, arm in enumerate(arms, 1):
        place = folder / arm.name
        reporter.message(f"[{number}/{len(arms)}] {arm.name}" + (": done before" if ArmResult.read(place) else ""))
        lm_sha256 = read_lm([folder / one.name for one in arms])
        try:
            done = run_arm(arm, place, then, share, data, lm_sha256=lm_sha256, reporter=reporter)
            results.append(done)
        except (MeetError, RuntimeError) as error:  # torch's errors, such as no memory left, are RuntimeErrors
            failed[arm.name] = str(error) if isinstance(error, MeetError) else f"{type(error).__name__}: {error}"
            reporter.warning(f"{arm.name} failed: {failed[arm.name]}")
        write_atomic(folder / TABLE, markdown(results, failed))
        share.keep_only(
            {stage_key(one.config, data.key, n) for one in arms[number:] for n in range(len(one.config.stages))}
        )
    if not failed:
        shutil.rmtree(folder / SHARED, ignore_errors=True)
    return results, failed


def data_of(config: RunConfig, folder: Path) -> PreparedData:
    """Return the rows that every arm uses, read and filtered once, in the prompt format that ``folder`` has pinned."""
    tokenizer, file = load_tokenizer(config.model.name), folder / FORMAT
    if file.is_file():
        prompt_format = PromptFormat(tokenizer, FormatSpec.from_dict(json.loads(file.read_text())))
    else:
        prompt_format = pinned_format(config, tokenizer)
    data = prepare_data(config.data, prompt_format)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(data.spec.to_dict(), indent=2) + "\n")
    return data


def _refuse_own(file: Path | None, overrides: Sequence[Override]) -> None:
    """Refuse settings that are a recipe's own, or that an option of the command has: they would be lost or undo it.

    Raises:
        ConfigError: Names the key and what to do.
    """
    given = settings_in(file)[0] if file else {}
    for key in ("recipe", "control", "stages", "seed"):
        if key in given:
            raise ConfigError(f"{file}: {key!r} is each recipe's own here (seeds: --seeds or --seed); leave it out")
    for override in overrides:
        if override.key == "recipe":
            raise ConfigError("--recipe has no effect: name recipes as arguments")
        if override.key == "seed":
            raise ConfigError("--seed has no effect on a sweep: pass --seeds")


def _matching(pattern: str) -> list[str]:
    known = recipe_names()
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found and any(sign in pattern for sign in "*?["):
        raise ConfigError(f"no recipe fits the pattern {pattern!r}; `meet recipes` lists them")
    if not found:
        raise ConfigError(f"unknown recipe {pattern!r}{nearest(pattern, known)}")
    return found
