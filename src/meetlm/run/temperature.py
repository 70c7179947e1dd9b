"""The same comparison at several temperatures (the paper's section 4.6 and Figure 3).

Missing completions are generated before they are compared. Completions and scores on disk are reused, so an interrupted
sweep continues when it is run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from meetlm.config.errors import ConfigError
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.yaml_files import validate
from meetlm.evaluation.completions import SystemCompletions, read_completions
from meetlm.evaluation.evaluate import Evaluators, refuse_unknown_baseline
from meetlm.evaluation.record import Evaluation
from meetlm.evaluation.settings import EvaluationSettings
from meetlm.generation.settings import Sampling
from meetlm.report.write import folder_of
from meetlm.run.completions import completions_file, write_completions
from meetlm.run.evaluate import compare
from meetlm.run.folder import read_data_settings, read_meet
from meetlm.run.levels import Level
from meetlm.run.systems import chosen_replies


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
        baselines: Names of the runs that are baselines.
        temperatures: At least one.
        sampling: The settings of sampling other than the temperature.
        settings: Settings of the evaluations.
        evaluators: They decide which completion wins.
        folder: Folder of scores and of the evaluations, such as ``t0.5/BASELINE/evaluation.json``.
        level: Level of the completions; each run's default where ``None``.
        seed: Seed of sampling.
        limit: Use only the first ``limit`` held-out prompts.
        only_common: Compare the prompts that all runs have, instead of refusing runs whose prompts differ.
        batch_size: Prompts per batch.
        reporter: Shows messages and progress.

    Raises:
        ConfigError: A baseline is not a run or is named twice, no other run is left, or a temperature is invalid.
        RunError: A run is not finished, or completions are missing and its weights are gone.
    """
    for name in baselines:
        refuse_unknown_baseline(name, list(runs))
    if len(set(baselines)) < len(baselines):
        raise ConfigError(f"--baseline names a run twice: {', '.join(baselines)}")
    compared = [name for name in runs if name not in baselines]
    if not compared:
        raise ConfigError("every run is a --baseline; name another run to compare with them")
    data = read_data_settings(next(iter(runs.values())))
    held_out = chosen_replies(data)
    generate = partial(write_completions, seed=seed, limit=limit, batch_size=batch_size, reporter=reporter)
    points = []
    for temperature in temperatures:
        sampling = validate(Sampling, {**sampling.model_dump(), "temperature": temperature}, {}, "sampling")
        completions: dict[str, SystemCompletions] = {}
        for name, run in runs.items():
            resolved = read_meet(run, weights=False).resolve(level)
            file = completions_file(run, resolved, sampling, seed, limit=limit)
            if not file.is_file():
                reporter.message(f"{name} at temperature {temperature:g}: generating completions")
                generate(run, None, resolved, sampling)
            completions[name] = read_completions(name, [[file]])
        for baseline in baselines:
            evaluation = compare(
                [completions[name] for name in (*compared, baseline)],
                held_out,
                baseline,
                settings,
                evaluators,
                only_common=only_common,
                recorded={
                    "temperature": temperature,
                    "sampling": sampling.model_dump(),
                    "level": level,
                    "sampling_seed": seed,
                    "limit": limit,
                    "data": data.model_dump(mode="json"),
                },
                reporter=reporter,
            )
            evaluation.save(folder / folder_of(temperature, evaluation) / "evaluation.json")
            points.append((temperature, evaluation))
    return points
