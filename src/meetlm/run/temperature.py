"""The same comparison at several temperatures (the paper's section 4.6 and Figure 3).

Completions that are missing are generated, then evaluated. Completions and scores on disk are reused, so an interrupted
sweep continues when it is run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.yaml_files import check
from meetlm.evaluation.alignment import align_completions
from meetlm.evaluation.completions import SystemCompletions, read_completions
from meetlm.evaluation.evaluate import Evaluators, evaluate_completions
from meetlm.evaluation.record import Evaluation
from meetlm.evaluation.settings import EvaluationSettings
from meetlm.generation.sampling import Sampling
from meetlm.report.write import folder_of
from meetlm.run.compared import chosen_replies
from meetlm.run.completions import completions_file, write_completions
from meetlm.run.folder import read_data_settings, read_meet
from meetlm.run.levels import Level, resolve_level


def sweep_temperature(
    runs: Mapping[str, Path],
    baselines: Sequence[str],
    temperatures: Sequence[float],
    sampling: Sampling,
    settings: EvaluationSettings,
    evaluators: Evaluators,
    folder: Path,
    *,
    level: Level | None = None,
    seed: int = 0,
    limit: int | None = None,
    only_common: bool = False,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> list[tuple[float, Evaluation]]:
    """Return an evaluation of every other run against each baseline at each temperature, saved in ``folder``.

    Args:
        runs: Finished runs by name, on the same held-out data; with their weights where completions are missing.
        baselines: Names of some of them.
        temperatures: At least one.
        sampling: The settings of sampling other than the temperature.
        settings: Settings of the evaluations.
        evaluators: They decide which completion wins.
        folder: Folder of scores and of the evaluations, such as ``t0.5/BASELINE/evaluation.json``.
        level: Level of the completions; each run's default where ``None``.
        seed: Seed of sampling.
        limit: Use only this many held-out prompts, the first ones.
        only_common: Compare the prompts that all runs have, instead of refusing runs whose prompts differ.
        batch_size: Prompts per batch.
        reporter: Shows messages and progress.

    Raises:
        ConfigError: A baseline is not a run or is named twice, no other run is left, or a temperature is invalid.
        RunError: A run is not finished, or completions are missing and its weights are gone.
    """
    for name in baselines:
        if name not in runs:
            raise ConfigError(f"--baseline {name!r} is not one of the runs{nearest(name, list(runs))}")
    if len(set(baselines)) < len(baselines):
        raise ConfigError(f"--baseline names a run twice: {', '.join(baselines)}")
    others = [name for name in runs if name not in baselines]
    if not others:
        raise ConfigError("every run is a --baseline; name another run to compare with them")
    data = read_data_settings(next(iter(runs.values())))
    held_out = chosen_replies(data)
    points = []
    for temperature in temperatures:
        sampling = check(Sampling, {**sampling.model_dump(), "temperature": temperature}, {}, "sampling")
        completions = {
            name: _completions(name, run, level, sampling, seed, limit, batch_size, reporter)
            for name, run in runs.items()
        }
        for baseline in baselines:
            compared = [completions[name] for name in (*others, baseline)]
            paired = align_completions(compared, held_out.chosen, only_common=only_common)
            paired.problems.extend(held_out.problems)
            recorded = {
                "temperature": temperature,
                "sampling": sampling.model_dump(),
                "level": level,
                "sampling_seed": seed,
                "limit": limit,
                "common": only_common,
                "data": data.model_dump(mode="json"),
                "data_sha256": held_out.sha256,
            }
            evaluation = evaluate_completions(
                paired, baseline, settings, evaluators, folder, recorded=recorded, reporter=reporter
            )
            evaluation.save(folder / folder_of(temperature, evaluation) / "evaluation.json")
            points.append((temperature, evaluation))
    return points


def _completions(
    name: str,
    run: Path,
    level: Level | None,
    sampling: Sampling,
    seed: int,
    limit: int | None,
    batch_size: int,
    reporter: Reporter,
) -> SystemCompletions:
    """Return the completions of a run, generated first if they are missing."""
    meet = read_meet(run, weights=False)
    level = resolve_level(meet.levels, meet.default_level if level is None else level)
    file = completions_file(run, level, sampling, seed, limit=limit)
    if not file.is_file():
        reporter.message(f"{name} at temperature {sampling.temperature:g}: generating completions")
        write_completions(run, None, level, sampling, seed=seed, limit=limit, batch_size=batch_size, reporter=reporter)
    return read_completions(name, [[file]])
