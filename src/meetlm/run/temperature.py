"""The same comparison over temperatures (the paper's section 4.6 and Figure 3): writes what is missing, then evaluates.

What is there is not made again: completions by run, level, temperature and seed; scores by completion; evaluations are
made of both. So the same command goes on where it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.yaml_files import check
from meetlm.evaluation.answers import read_answers
from meetlm.evaluation.cells import line_up
from meetlm.evaluation.evaluate import EvaluationSettings, Evaluators, evaluate
from meetlm.evaluation.record import Evaluation
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
    common: bool = False,
    batch_size: int = 32,
    reporter: Reporter = SILENT,
) -> list[tuple[float, Evaluation]]:
    """Return an evaluation of every other run against each baseline at each temperature, saved in ``folder``.

    Args:
        runs: Finished runs by name, with their weights where completions are missing; of the same held-out data.
        baselines: Names of some of them.
        temperatures: At least one.
        sampling: The rest of it.
        settings: Of the evaluations.
        evaluators: Who decides.
        folder: ``t0.5/BASELINE/evaluation.json``, and the scores.
        level: Of the completions; each run's default where ``None``.
        seed: Of the random streams that completions are drawn by.
        limit: The first so many held-out prompts.
        common: Compare over the prompts that all runs have, instead of refusing where they differ.
        batch_size: Rows at once.
        reporter: Shows the completions that are written.

    Raises:
        ConfigError: A baseline is no run or stands there twice, no run is left to compare, or a temperature is none.
        RunError: A run is not finished or its weights are gone, and completions are missing.
    """
    for name in baselines:
        if name not in runs:
            raise ConfigError(f"--baseline {name!r} is none of the runs{nearest(name, list(runs))}")
    if len(set(baselines)) < len(baselines):
        raise ConfigError(f"a --baseline stands there twice: {', '.join(baselines)}")
    others = [name for name in runs if name not in baselines]
    if not others:
        raise ConfigError("every run is a baseline: name one to compare with them")
    data = read_data_settings(next(iter(runs.values())))
    held = chosen_replies(data)
    points = []
    for temperature in temperatures:
        drawn = check(Sampling, {**sampling.model_dump(), "temperature": temperature}, {}, "sampling")
        answers = {}
        for name, run in runs.items():
            meet = read_meet(run, weights=False)
            own = resolve_level(meet.levels, meet.default_level if level is None else level)
            file = completions_file(run, own, drawn, seed, limit=limit)
            if not file.is_file():
                reporter.message(f"{name} at temperature {temperature:g}: writing completions")
                write_completions(
                    run,
                    None,
                    own,
                    drawn,
                    seed=seed,
                    limit=limit,
                    batch_size=batch_size,
                    reporter=reporter,
                )
            answers[name] = read_answers(name, [[file]])
        for baseline in baselines:
            compared = [answers[name] for name in (*others, baseline)]
            cells = line_up(compared, held.chosen, common=common)
            cells.problems.extend(held.problems)
            more = {
                "temperature": temperature,
                "sampling": drawn.model_dump(),
                "level": level,
                "sampling_seed": seed,
                "limit": limit,
                "common": common,
                "data": data.model_dump(mode="json"),
                "data_sha256": held.sha256,
            }
            found = evaluate([one.system for one in compared], cells, baseline, settings, evaluators, folder, more=more)
            found.save(folder / folder_of(temperature, found) / "evaluation.json")
            points.append((temperature, found))
    return points
