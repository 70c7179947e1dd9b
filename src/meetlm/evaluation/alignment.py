"""Aligns the completions of several systems: the same prompts under the same seeds, or an error.

A rate over prompts that one system has and another lacks would compare prompts, not systems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from meetlm.config.errors import ConfigError
from meetlm.evaluation.completions import SystemCompletion, SystemCompletions
from meetlm.evaluation.record import Problem, PromptRow, Replicate, System

SETTINGS = ("temperature", "top_p", "max_new_tokens", "stop")
"""Settings of sampling that have to be the same. Levels and controls are what is compared."""


@dataclass(frozen=True, slots=True)
class PairedCompletions:
    """Completions of several systems, cell by cell. A cell is one prompt under one seed.

    Attributes:
        systems: The systems, in the order of the tables.
        prompts: Held-out prompts with completions.
        cells: [index into ``prompts``, seed].
        completions: For each system, one completion per cell.
        problems: What had to be left out, and what is unknown.
        replicates: Which run and seed each seed in ``cells`` is, for each system.
    """

    systems: list[System]
    prompts: list[PromptRow]
    cells: list[tuple[int, int]]
    completions: dict[str, list[SystemCompletion]]
    problems: list[Problem]
    replicates: list[Replicate] = field(default_factory=list)

    @property
    def clusters(self) -> list[int]:
        """The index of each cell's prompt: cells of a prompt are resampled together."""
        return [prompt for prompt, _ in self.cells]

    def runs(self, *systems: str) -> list[int]:
        """Return a number per cell for the training runs that wrote it, one run of each of ``systems``."""
        run_of = {(replicate.system, replicate.seed): replicate.run for replicate in self.replicates}
        runs = [tuple(run_of.get((name, seed), 0) for name in systems) for _, seed in self.cells]
        numbers = {run: number for number, run in enumerate(dict.fromkeys(runs))}
        return [numbers[run] for run in runs]


def align_completions(
    systems: Sequence[SystemCompletions], chosen: Mapping[str, str | None], *, only_common: bool = False
) -> PairedCompletions:
    """Return the cells that several systems have in common.

    Replicates are paired by their seeds; where these differ, in their order. A system with one replicate is compared
    with every replicate of the others; intervals then do not include the variation of its training, as the report says.

    Args:
        systems: Their completions; at least one system.
        chosen: The preferred reply of each held-out prompt by prompt id, in order; ``None`` where there is none.
        only_common: Compare over the prompts that all systems have; otherwise it is an error if they differ.

    Raises:
        ConfigError: The systems were sampled differently or have different prompts, or none of them is held out.
    """
    _check_sampling(systems)
    problems = [problem for completions in systems for problem in completions.problems]
    for completions in systems:
        system = completions.system
        unstated = [name for name in SETTINGS if name not in (system.sampling or {})]
        if unstated:
            what = f"{system.name}: {', '.join(unstated)} not stated; assumed to be as in the other systems"
            problems.append(Problem(what, len(unstated), system.files, of_rows=False))
    origins = _first_origins(systems)
    not_held_out = sorted(set(origins) - set(chosen))
    if not_held_out:
        if len(not_held_out) == len(origins):
            raise ConfigError(
                f"none of the {len(not_held_out)} prompts with completions is among the {len(chosen)} held-out "
                "prompts: pass the data that `meet generate` read as --data.path"
            )
        rows = [origins[prompt] for prompt in not_held_out]
        problems.append(Problem("prompts that are not among the held-out ones; left out", len(rows), rows))
        systems = [_only_prompts(completions, chosen) for completions in systems]
    systems = _pair_seeds(systems)
    common = set.intersection(*(set(completions.by_cell) for completions in systems))
    missing = _missing(systems)
    if missing and not only_common:
        counts = "; ".join(f"{name} lacks {len(rows)}, such as {rows[0]}" for name, rows in missing.items())
        raise ConfigError(
            f"the systems have different prompts or seeds: {counts}. Write the completions of all systems for the same "
            "prompts and seeds, or compare over those that all have with --common"
        )
    problems += [
        Problem(f"{name}: no completion for a prompt or seed that others have; left out for all", len(rows), rows)
        for name, rows in missing.items()
    ]
    in_common = {prompt for prompt, _ in common}
    prompts = [prompt for prompt in chosen if prompt in in_common]
    if not prompts:
        raise ConfigError("there is no prompt for which all systems have completions")
    without = [prompt for prompt in chosen if prompt not in origins]
    if without:
        problems.append(Problem("held-out prompts that no system has a completion for", len(without), without))
    places = {prompt: place for place, prompt in enumerate(prompts)}
    cells = sorted((places[prompt], seed) for prompt, seed in common)
    keys = [(prompts[place], seed) for place, seed in cells]
    contents = {prompt: completion.prompt.to_json() for (prompt, _), completion in systems[0].by_cell.items()}
    return PairedCompletions(
        [completions.system for completions in systems],
        [PromptRow(prompt, contents[prompt], chosen[prompt]) for prompt in prompts],
        cells,
        {completions.system.name: [completions.by_cell[key] for key in keys] for completions in systems},
        problems,
        [replicate for completions in systems for replicate in _replicates(completions, keys)],
    )


def _check_sampling(systems: Sequence[SystemCompletions]) -> None:
    """Refuse systems whose sampling differs; a system that states nothing passes."""
    for name in SETTINGS:
        stated = [
            (completions.system.name, completions.system.sampling[name])
            for completions in systems
            if completions.system.sampling is not None and name in completions.system.sampling
        ]
        for (first, value), (second, other_value) in pairwise(stated):
            if value != other_value:
                raise ConfigError(
                    f"{first} was sampled with {name} {json.dumps(value)} and {second} with {json.dumps(other_value)}: "
                    "only completions that were sampled alike can be compared; `meet generate` writes them again"
                )


def _pair_seeds(systems: Sequence[SystemCompletions]) -> list[SystemCompletions]:
    """Return the systems with the same seeds, if all systems with several replicates have the same number of them."""
    seeds = [completions.seeds for completions in systems]
    most = max(map(len, seeds))
    are_equal = all(system_seeds == seeds[0] for system_seeds in seeds)
    if are_equal or not all(len(system_seeds) in (1, most) for system_seeds in seeds):
        return list(systems)
    return [replace(completions, by_cell=_renumbered(completions, most)) for completions in systems]


def _renumbered(completions: SystemCompletions, most: int) -> dict[tuple[str, int], SystemCompletion]:
    """Return completions by prompt and number of the replicate; a single replicate has all numbers below ``most``."""
    cells = completions.by_cell.items()
    if len(completions.seeds) == 1:
        return {(prompt, number): completion for (prompt, _), completion in cells for number in range(most)}
    numbers = {seed: number for number, seed in enumerate(completions.seeds)}
    return {(prompt, numbers[seed]): completion for (prompt, seed), completion in cells}


def _replicates(completions: SystemCompletions, cells: Sequence[tuple[str, int]]) -> list[Replicate]:
    """Return which run and seed each seed of the cells is in a system.

    Files of one folder that state one run are of one training run; rows that state none are distinguished by place.
    """
    first: dict[int, SystemCompletion] = {}
    for prompt, seed in cells:
        first.setdefault(seed, completions.by_cell[prompt, seed])
    runs: dict[tuple[str | None, str | int], int] = {}
    replicates = []
    for seed, completion in sorted(first.items()):
        file = completion.origin.file
        identity = completion.run, completion.place if completion.run is None else str(Path(file).parent)
        run = runs.setdefault(identity, len(runs))
        source = completion.run or str(file)
        replicates.append(Replicate(completions.system.name, seed, run, source, completion.sampling_seed))
    return replicates


def _missing(systems: Sequence[SystemCompletions]) -> dict[str, list[str]]:
    """Return, for each system that lacks cells, where another system has them."""
    origins = {key: str(completion.origin) for system in systems for key, completion in system.by_cell.items()}
    missing = {system.system.name: origins.keys() - system.by_cell.keys() for system in systems}
    return {name: sorted(origins[key] for key in keys) for name, keys in missing.items() if keys}


def _first_origins(systems: Sequence[SystemCompletions]) -> dict[str, str]:
    """Return file and line of the first completion of each prompt."""
    cells = [item for completions in systems for item in completions.by_cell.items()]
    return {prompt: str(completion.origin) for (prompt, _), completion in reversed(cells)}


def _only_prompts(completions: SystemCompletions, chosen: Mapping[str, str | None]) -> SystemCompletions:
    by_cell = {key: completion for key, completion in completions.by_cell.items() if key[0] in chosen}
    return replace(completions, by_cell=by_cell)
