"""Brings the completions of several systems together: the same prompts under the same seeds, or nothing.

A rate over prompts that one system has and another has not would compare prompts, not systems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from meetlm.config.errors import ConfigError
from meetlm.evaluation.answers import Answer, Answers
from meetlm.evaluation.record import Problem, PromptRow, Replicate

SETTINGS = ("temperature", "top_p", "max_new_tokens", "stop")
"""Of sampling: these have to be the same. Level and control are what is compared."""


@dataclass(frozen=True, slots=True)
class Cells:
    """Prompts, seeds, and what each system has there.

    Attributes:
        prompts: Held-out prompts that have completions.
        cells: [index into ``prompts``, seed].
        answers: For each system, one a cell.
        problems: What had to be left out, and what is not known.
        replicates: Which run and seed each seed in ``cells`` is, for each system.
    """

    prompts: list[PromptRow]
    cells: list[tuple[int, int]]
    answers: dict[str, list[Answer]]
    problems: list[Problem]
    replicates: list[Replicate] = field(default_factory=list)

    @property
    def clusters(self) -> list[int]:
        """For each cell the index of its prompt: what is drawn together."""
        return [prompt for prompt, _ in self.cells]

    def runs(self, *systems: str) -> list[int]:
        """For each cell a number for the training runs that wrote it, one of each of ``systems``."""
        of_seed = {(one.system, one.seed): one.run for one in self.replicates}
        pairs = [tuple(of_seed.get((name, seed), 0) for name in systems) for _, seed in self.cells]
        numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        return [numbers[pair] for pair in pairs]


def line_up(systems: Sequence[Answers], chosen: Mapping[str, str | None], *, common: bool = False) -> Cells:
    """Return the cells of several systems.

    Replicates are paired by their seeds; where these differ, in their order, and a system that has one is compared with
    each of the others' (no interval then holds the chance of its training, which the report says).

    Args:
        systems: Their completions; at least one.
        chosen: The preferred reply of each held-out prompt, by prompt id, in their order; ``None`` where there is none.
        common: Compare over the prompts that all systems have, instead of refusing where they differ.

    Raises:
        ConfigError: The systems were sampled differently or have other prompts, or none is held out.
    """
    sampled_alike(systems)
    problems = [problem for answers in systems for problem in answers.problems]
    for system in (answers.system for answers in systems):
        unstated = [name for name in SETTINGS if name not in (system.sampling or {})]
        if unstated:
            what = f"{system.name}: does not state {', '.join(unstated)}, taken as those of the others"
            problems.append(Problem(what, len(unstated), system.files, of_rows=False))
    everything = [item for answers in systems for item in answers.by_cell.items()]
    somewhere = {prompt: str(answer.origin) for (prompt, _), answer in reversed(everything)}
    outside = sorted(set(somewhere) - set(chosen))
    if outside:
        where = [somewhere[prompt] for prompt in outside]
        problems.append(Problem("prompts that are not among the held-out ones; left out", len(outside), where))
        if len(outside) == len(somewhere):
            what = f"none of the {len(outside)} prompts with completions is among the {len(chosen)} of --data"
            raise ConfigError(f"{what}: was it the data that `meet generate` read?")
        systems = [_held_out(answers, chosen) for answers in systems]
    systems = _paired(systems)
    keys = [set(answers.by_cell) for answers in systems]
    shared, union = set.intersection(*keys), set.union(*keys)
    if shared != union:
        lacking = _lacking(systems, union)
        if not common:
            said = "; ".join(f"{name} lacks {len(rows)}, such as {rows[0]}" for name, rows in lacking.items())
            raise ConfigError(
                f"the systems have different prompts or seeds ({len(union)} in all): {said}. Write the completions of "
                "all for the same prompts and seeds, or compare over what they have in common with --common"
            )
        problems += [
            Problem(
                f"{name}: no completion for a prompt or seed that others have; left out for all",
                len(rows),
                rows,
            )
            for name, rows in lacking.items()
        ]
    everywhere = {prompt for prompt, _ in shared}
    kept = [prompt for prompt in chosen if prompt in everywhere]
    if not kept:
        raise ConfigError("there is no prompt for which all systems have completions")
    without = [prompt for prompt in chosen if prompt not in somewhere]
    if without:
        problems.append(Problem("held-out prompts that no system has a completion for", len(without), without))
    places = {prompt: place for place, prompt in enumerate(kept)}
    order = sorted((places[prompt], seed) for prompt, seed in shared if prompt in places)
    named = [(kept[place], seed) for place, seed in order]
    first = {prompt: answer for (prompt, _), answer in systems[0].by_cell.items()}
    return Cells(
        [PromptRow(prompt, first[prompt].prompt.to_json(), chosen[prompt]) for prompt in kept],
        order,
        {answers.system.name: [answers.by_cell[key] for key in named] for answers in systems},
        problems,
        [replicate for answers in systems for replicate in _numbered(answers, named)],
    )


def sampled_alike(systems: Sequence[Answers]) -> None:
    """Refuse systems whose sampling differs; one that states nothing passes.

    Raises:
        ConfigError: Names both, and the setting.
    """
    for name in SETTINGS:
        stated = [one.system for one in systems if one.system.sampling is not None and name in one.system.sampling]
        for one, other in pairwise(stated):
            assert one.sampling is not None and other.sampling is not None
            if one.sampling[name] != other.sampling[name]:
                raise ConfigError(
                    f"{one.name} was sampled with {name} {json.dumps(one.sampling[name])} and {other.name} with "
                    f"{json.dumps(other.sampling[name])}: only completions that were sampled alike can be compared; "
                    "`meet generate` writes them anew"
                )


def _paired(systems: Sequence[Answers]) -> list[Answers]:
    """Return the systems with the same seeds, where each has as many, or one."""
    seeds = [answers.seeds for answers in systems]
    most = max(map(len, seeds))
    if all(one == seeds[0] for one in seeds) or not all(len(one) in (1, most) for one in seeds):
        return list(systems)
    return [replace(answers, by_cell=_renumbered(answers, most)) for answers in systems]


def _numbered(answers: Answers, cells: Sequence[tuple[str, int]]) -> list[Replicate]:
    """Return what each seed of the cells is in a system.

    Files of one folder that state one run are of one training run; rows that state none are told apart by their place.
    """
    first: dict[int, Answer] = {}
    for prompt, seed in cells:
        first.setdefault(seed, answers.by_cell[prompt, seed])
    runs: dict[tuple[str | None, str | int], int] = {}
    found = []
    for seed, one in sorted(first.items()):
        trained = one.run, one.place if one.run is None else str(Path(one.origin.file).parent)
        run = runs.setdefault(trained, len(runs))
        source = one.run or str(one.origin.file)
        found.append(Replicate(answers.system.name, seed, run, source, one.sampling_seed))
    return found


def _renumbered(answers: Answers, most: int) -> dict[tuple[str, int], Answer]:
    """Return the completions by prompt and place among ``most`` replicates; a single one stands at each place."""
    if len(answers.seeds) == 1:
        return {(prompt, place): one for (prompt, _), one in answers.by_cell.items() for place in range(most)}
    places = {seed: place for place, seed in enumerate(answers.seeds)}
    return {(prompt, places[seed]): one for (prompt, seed), one in answers.by_cell.items()}


def _lacking(systems: Sequence[Answers], union: set[tuple[str, int]]) -> dict[str, list[str]]:
    """Return for each system that lacks some cells, where another system has them."""
    found = {key: str(answers.by_cell[key].origin) for answers in systems for key in answers.by_cell}
    missing = {answers.system.name: sorted(found[key] for key in union - set(answers.by_cell)) for answers in systems}
    return {name: rows for name, rows in missing.items() if rows}


def _held_out(answers: Answers, chosen: Mapping[str, str | None]) -> Answers:
    """Return the completions of held-out prompts alone: what else a file holds makes systems no different."""
    return replace(answers, by_cell={key: one for key, one in answers.by_cell.items() if key[0] in chosen})
