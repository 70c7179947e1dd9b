"""Pair the completions of several systems: the same prompts in the same replicates, or an error.

If the systems had different prompts, differences between their rates could come from the prompts.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from meetlm.config.errors import ConfigError
from meetlm.evaluation.completions import SystemCompletion, SystemCompletions
from meetlm.evaluation.record import Problem, PromptRow, Replicate, System

SETTINGS = ("temperature", "top_p", "max_new_tokens", "stop")
"""Sampling settings that must be equal. Levels and controls may differ, since the evaluation compares them."""

Cells = dict[tuple[str, int], SystemCompletion]
"""Completions of a system by prompt id and number of the replicate."""


@dataclass(frozen=True, slots=True)
class PairedCompletions:
    """Completions of several systems, cell by cell. A cell is one prompt in one replicate.

    Attributes:
        systems: The systems, in the order of the tables.
        prompts: Held-out prompts with completions.
        cells: [index into ``prompts``, number of the replicate].
        completions: For each system, one completion per cell.
        problems: Rows that were left out, and settings that are unknown.
        replicates: The run and sampling seed of each replicate, for each system.
    """

    systems: list[System]
    prompts: list[PromptRow]
    cells: list[tuple[int, int]]
    completions: dict[str, list[SystemCompletion]]
    problems: list[Problem]
    replicates: list[Replicate] = field(default_factory=list)

    @property
    def clusters(self) -> list[int]:
        """The index of each cell's prompt; cells of a prompt are resampled together."""
        return [prompt for prompt, _ in self.cells]

    def runs(self, *systems: str) -> list[int]:
        """Return a number per cell that identifies the training runs of ``systems`` that wrote its completions."""
        run_of = {(replicate.system, replicate.number): replicate.run for replicate in self.replicates}
        runs = [tuple(run_of.get((name, number), 0) for name in systems) for _, number in self.cells]
        numbers = {run: number for number, run in enumerate(dict.fromkeys(runs))}
        return [numbers[run] for run in runs]


def align_completions(
    systems: Sequence[SystemCompletions], chosen: Mapping[str, str | None], *, only_common: bool = False
) -> PairedCompletions:
    """Return the cells for which all systems have completions.

    Replicates are paired in their order. A system with one replicate is compared with every replicate of the others;
    intervals then do not include the variation between its training runs, and the report says so.

    Args:
        systems: The completions of at least one system.
        chosen: The preferred reply of each held-out prompt by prompt id, in order; ``None`` if there is none.
        only_common: Compare only the prompts that all systems have, instead of refusing different prompts.

    Raises:
        ConfigError: The systems were sampled differently or have different prompts, or no prompt is held out.
    """
    _check_sampling(systems)
    problems = [problem for completions in systems for problem in completions.problems]
    for system in (completions.system for completions in systems):
        unknown_settings = [name for name in SETTINGS if name not in (system.sampling or {})]
        if unknown_settings:
            names = ", ".join(unknown_settings)
            text = f"{system.name}: unknown {names}; assumed to be the same as for the other systems"
            problems.append(Problem(text, system.files))
    by_prompt: dict[str, SystemCompletion] = {}
    for completions in systems:
        for (prompt, _), completion in completions.by_cell.items():
            by_prompt.setdefault(prompt, completion)
    unknown = sorted(set(by_prompt) - set(chosen))
    if len(unknown) == len(by_prompt):
        raise ConfigError(
            f"none of the {len(unknown)} prompts with completions is among the {len(chosen)} held-out prompts: pass "
            "the data that `meet generate` read as --data.path"
        )
    if unknown:
        rows = [str(by_prompt[prompt].origin) for prompt in unknown]
        problems.append(Problem("prompts that are not held out; skipped", rows))
    by_system = _number_replicates(systems, chosen)
    origins = {key: str(completion.origin) for cells in by_system.values() for key, completion in cells.items()}
    missing = {
        name: sorted(origins[key] for key in origins.keys() - cells.keys())
        for name, cells in by_system.items()
        if origins.keys() - cells.keys()
    }
    if missing and not only_common:
        counts = "; ".join(f"{name} lacks {len(rows)} of them, such as {rows[0]}" for name, rows in missing.items())
        raise ConfigError(
            f"the systems have different prompts or seeds: {counts}. Generate the missing completions, "
            "or pass --common to compare only the prompts that all systems have"
        )
    problems += [
        Problem(f"{name}: no completion for a prompt or seed that other systems have; left out for all", rows)
        for name, rows in missing.items()
    ]
    common = set.intersection(*map(set, by_system.values()))
    prompts = [prompt for prompt in chosen if prompt in {prompt for prompt, _ in common}]
    if not prompts:
        raise ConfigError("there is no prompt for which all systems have completions")
    if unanswered := [prompt for prompt in chosen if prompt not in by_prompt]:
        problems.append(Problem("held-out prompts for which no system has a completion", unanswered))
    indices = {prompt: index for index, prompt in enumerate(prompts)}
    cells = sorted((indices[prompt], number) for prompt, number in common)
    paired = {name: [by_cell[prompts[index], number] for index, number in cells] for name, by_cell in by_system.items()}
    return PairedCompletions(
        systems=[completions.system for completions in systems],
        prompts=[PromptRow(prompt, by_prompt[prompt].prompt.to_json(), chosen[prompt]) for prompt in prompts],
        cells=cells,
        completions=paired,
        problems=problems,
        replicates=[
            replicate
            for name, completions_of_cells in paired.items()
            for replicate in _replicates(name, cells, completions_of_cells)
        ],
    )


def _check_sampling(systems: Sequence[SystemCompletions]) -> None:
    """Refuse systems that were sampled differently; unknown settings are not compared."""
    for name in SETTINGS:
        known = [
            (completions.system.name, completions.system.sampling[name])
            for completions in systems
            if completions.system.sampling is not None and name in completions.system.sampling
        ]
        for (first, value), (second, other_value) in pairwise(known):
            if value != other_value:
                raise ConfigError(
                    f"{first} was sampled with {name} {json.dumps(value)} and {second} with {json.dumps(other_value)}: "
                    "completions can be compared only if their sampling settings are equal; write them again with "
                    "`meet generate`"
                )


def _number_replicates(systems: Sequence[SystemCompletions], held_out: Container[str]) -> dict[str, Cells]:
    """Return the completions of held-out prompts by system, with replicates numbered in their order.

    A single replicate gets the numbers of all replicates that another system has.
    """
    completions = {
        system.system.name: {key: value for key, value in system.by_cell.items() if key[0] in held_out}
        for system in systems
    }
    replicates = {name: sorted({replicate for _, replicate in cells}) for name, cells in completions.items()}
    num_replicates = max(map(len, replicates.values()))
    return {
        name: {
            (prompt, number): completion
            for (prompt, replicate), completion in cells.items()
            for number in (range(num_replicates) if len(replicates[name]) == 1 else [replicates[name].index(replicate)])
        }
        for name, cells in completions.items()
    }


def _replicates(
    system: str, cells: Sequence[tuple[int, int]], completions: Sequence[SystemCompletion]
) -> list[Replicate]:
    """Return the run and sampling seed of each replicate of a system.

    Files in the same folder with the same run name come from one training run; rows without a run name come from one
    run per source.
    """
    first_completions: dict[int, SystemCompletion] = {}
    for (_, number), completion in zip(cells, completions, strict=True):
        first_completions.setdefault(number, completion)
    runs: dict[tuple[str | None, str | int], int] = {}
    replicates = []
    for number, completion in sorted(first_completions.items()):
        file = completion.origin.file
        identity = completion.run, completion.source if completion.run is None else str(Path(file).parent)
        run = runs.setdefault(identity, len(runs))
        replicates.append(Replicate(system, number, run, completion.run or str(file), completion.seed))
    return replicates
