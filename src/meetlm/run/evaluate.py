"""``meetlm.evaluate``: compare completions of systems with those of a baseline, and write a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.settings import Settings
from meetlm.config.yaml_files import validate
from meetlm.data.settings import DataSettings
from meetlm.diagnostics.locate import held_out_settings
from meetlm.evaluation.alignment import align_completions
from meetlm.evaluation.completions import SystemCompletions
from meetlm.evaluation.evaluate import Evaluators, evaluate_completions, refuse_unknown_baseline
from meetlm.evaluation.record import Evaluation
from meetlm.evaluation.settings import EvaluationSettings, JudgeSettings, RewardSettings
from meetlm.generation.settings import Sampling
from meetlm.report.write import write_report
from meetlm.run.levels import Level
from meetlm.run.systems import HeldOutReplies, chosen_replies, data_of_runs, named_paths, read_systems

Paths = str | Path | Sequence[str | Path]
S = TypeVar("S", bound=Settings)


def evaluate(
    systems: Mapping[str, Paths] | Sequence[str | Path],
    baseline: str,
    *,
    data: str | Path | Mapping[str, Any] | DataSettings | None = None,
    level: Level | None = "good",
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    reward: str | Path | Mapping[str, Any] | RewardSettings | None = None,
    judge: Mapping[str, Any] | JudgeSettings | None = None,
    scorers: Sequence[str] = (),
    settings: Mapping[str, Any] | EvaluationSettings | None = None,
    only_common: bool = False,
    out: str | Path = "runs/evaluation",
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Compare completions of systems with those of a baseline on the same held-out prompts.

    Example::

        evaluation = meetlm.evaluate({"meet": "runs/meet", "sft": "runs/sft"}, "sft", reward="runs/rm")

    Args:
        systems: Folders of runs or files of completions by name; several paths of one name are replicates. Or a list
            of paths, named after themselves, or ``NAME=PATH``.
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
    folder = Path(out)
    named = _named(systems)
    refuse_unknown_baseline(baseline, [name for name, _ in named])
    if isinstance(data, str | Path):
        data = {"path": str(data)}
    stated_data = held_out_settings(data, {}) if isinstance(data, Mapping) else data
    used_data = stated_data or data_of_runs(named)
    if isinstance(reward, str | Path):
        reward = {"model": str(reward)}
    sampled = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    sampling = validate(Sampling, sampled, {}, "evaluate")
    evaluation_settings = _validated(EvaluationSettings, settings or {}, "settings")
    evaluators = Evaluators.load(
        reward=None if reward is None else _validated(RewardSettings, reward, "reward"),
        judge=None if judge is None else _validated(JudgeSettings, judge, "judge"),
        scorers=scorers,
        source=used_data.source,
        folder=folder,
    )
    held_out = chosen_replies(used_data)
    evaluation = compare(
        read_systems(named, level, sampling, held_out.chosen, data=stated_data),
        held_out,
        baseline,
        evaluation_settings,
        evaluators,
        only_common=only_common,
        recorded={"protocol": {"level": level, **sampling.model_dump()}, "data": used_data.model_dump(mode="json")},
        reporter=reporter,
    )
    evaluation.save(folder / "evaluation.json")
    for file in write_report(evaluation, folder):
        reporter.message(f"report: {file}")
    return evaluation


def compare(
    systems: Sequence[SystemCompletions],
    held_out: HeldOutReplies,
    baseline: str,
    settings: EvaluationSettings,
    evaluators: Evaluators,
    *,
    only_common: bool,
    recorded: Mapping[str, Any],
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Compare completions with a baseline's on the held-out prompts; arguments as of :func:`evaluate_completions`."""
    completions = align_completions(systems, held_out.chosen, only_common=only_common)
    completions.problems.extend(held_out.problems)
    recorded = {**recorded, "common": only_common, "data_sha256": held_out.sha256}
    return evaluate_completions(completions, baseline, settings, evaluators, recorded=recorded, reporter=reporter)


def _named(systems: Mapping[str, Paths] | Sequence[str | Path]) -> list[tuple[str, list[Path]]]:
    if not isinstance(systems, Mapping):
        return [named_paths(str(system)) for system in systems]
    return [
        (name, [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths])
        for name, paths in systems.items()
    ]


def _validated(settings: type[S], value: Mapping[str, Any] | S, name: str) -> S:
    return validate(settings, dict(value) if isinstance(value, Mapping) else value, {}, name)
