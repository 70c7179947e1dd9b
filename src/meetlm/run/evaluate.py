"""``meetlm.evaluate``: compare completions of systems with those of a baseline, and write a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.yaml_files import check
from meetlm.data.settings import DataSettings
from meetlm.diagnostics.locate import held_out_settings
from meetlm.evaluation.alignment import align_completions
from meetlm.evaluation.evaluate import Evaluators, evaluate_completions
from meetlm.evaluation.record import Evaluation
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings
from meetlm.generation.sampling import Sampling
from meetlm.report.write import write_report
from meetlm.run.compared import chosen_replies, data_of, named_places, read_systems
from meetlm.run.levels import Level

Places = str | Path | Sequence[str | Path]


def evaluate(
    systems: Mapping[str, Places] | Sequence[str | Path],
    baseline: str,
    *,
    data: str | Path | Mapping[str, Any] | None = None,
    level: Level | None = "good",
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    reward: str | Path | Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
    scorers: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    only_common: bool = False,
    out: str | Path = "runs/evaluation",
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Compare completions of systems with those of a baseline on the same held-out prompts.

    Example::

        evaluation = meetlm.evaluate({"meet": "runs/meet", "sft": "runs/sft"}, "sft", reward="runs/rm")

    Args:
        systems: Folders of runs or files of completions by name; several places of one name are replicates. Or a list
            of places, named after themselves, or ``NAME=PLACE``.
        baseline: Name of the system that the others are compared with.
        data: Held-out prompts with chosen replies: a file, folder or hub name, or settings of the data; the data of the
            first run by default.
        level: Level of the completions to use of a run; each run's default where ``None``.
        temperature: Temperature that they were sampled at.
        top_p: Top-p that they were sampled with.
        max_new_tokens: Maximum number of new tokens that they were sampled with.
        reward: Reward model that decides: a hub name, a folder, or settings.
        judge: Settings of an LLM judge that decides, such as ``{"model": "gpt-4o"}``.
        scorers: Functions that decide, as ``MODULE:FUNCTION``.
        settings: Settings of outcomes and intervals (:class:`EvaluationSettings`).
        only_common: Compare over the prompts that all systems have, where they differ.
        out: Folder of the report, and of scores and the judge's answers, which a repeated call reuses.
        reporter: Shows messages and progress.

    Raises:
        MeetError: A system, the data, an evaluator or a setting cannot be used.
    """
    sampled = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    places = _named(systems)
    data_settings = _data(data) or data_of(places)
    return evaluate_systems(
        places,
        baseline,
        data_settings,
        level=level,
        sampling=check(Sampling, sampled, {}, "evaluate"),
        evaluators=_evaluators(reward, judge, scorers, data_settings.source, Path(out)),
        settings=check(EvaluationSettings, dict(settings or {}), {}, "settings"),
        only_common=only_common,
        out=Path(out),
        reporter=reporter,
    )


def evaluate_systems(
    systems: Sequence[tuple[str, Sequence[Path]]],
    baseline: str,
    data: DataSettings,
    *,
    level: Level | None,
    sampling: Sampling,
    evaluators: Evaluators,
    settings: EvaluationSettings,
    only_common: bool,
    out: Path,
    data_args: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Compare systems as :func:`evaluate` does, with evaluators and settings that are loaded and checked.

    Args:
        systems: Names and places.
        baseline: Name of one of them.
        data: Held-out prompts.
        level: Level of the completions to use of a run.
        sampling: Sampling of the completions.
        evaluators: They decide which completion wins.
        settings: Settings of outcomes and intervals.
        only_common: Compare over the prompts that all systems have.
        out: Folder of the results.
        data_args: Arguments by which `meet generate` finds the prompts, for messages.
        reporter: Shows messages and progress.
    """
    held_out = chosen_replies(data)
    completions = align_completions(
        read_systems(systems, level, sampling, held_out.chosen, data=data_args),
        held_out.chosen,
        only_common=only_common,
    )
    completions.problems.extend(held_out.problems)
    evaluation = evaluate_completions(
        completions,
        baseline,
        settings,
        evaluators,
        out,
        recorded={
            "protocol": {"level": level, **sampling.model_dump()},
            "common": only_common,
            "data": data.model_dump(mode="json"),
            "data_sha256": held_out.sha256,
        },
        reporter=reporter,
    )
    evaluation.save(out / "evaluation.json")
    for file in write_report(evaluation, out):
        reporter.message(f"report: {file}")
    return evaluation


def _named(systems: Mapping[str, Places] | Sequence[str | Path]) -> list[tuple[str, list[Path]]]:
    if not isinstance(systems, Mapping):
        return [named_places(str(system)) for system in systems]
    return [
        (name, [Path(places)] if isinstance(places, str | Path) else [Path(place) for place in places])
        for name, places in systems.items()
    ]


def _data(data: str | Path | Mapping[str, Any] | None) -> DataSettings | None:
    if data is None:
        return None
    return held_out_settings(dict(data) if isinstance(data, Mapping) else {"path": str(data)}, {})


def _evaluators(
    reward: str | Path | Mapping[str, Any] | None,
    judge: Mapping[str, Any] | None,
    scorers: Sequence[str],
    source: str,
    folder: Path,
) -> Evaluators:
    if isinstance(reward, str | Path):
        reward = {"model": str(reward)}
    return Evaluators.load(
        reward=None if reward is None else check(RewardSettings, dict(reward), {}, "reward"),
        judge=None if judge is None else check(JudgeSettings, dict(judge), {}, "judge"),
        scorers=scorers,
        source=source,
        folder=folder,
    )
