"""Write docs/experiments.md and its figures from the results of ``run.py``.

    python experiments/report.py

Tables have the seeds that are finished; intervals are over prompts and training runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from arms import Experiments
from matplotlib import rc_context
from matplotlib.figure import Figure
from run import finished
from tasks import arm_name, read_plan

from meetlm.config.reporter import SILENT
from meetlm.demo.scorers import BRIEF_WORDS
from meetlm.diagnostics.intervals import Interval
from meetlm.evaluation.dial import find_trend
from meetlm.evaluation.settings import DialSettings
from meetlm.evaluation.statistics import Clusters, difference, mean
from meetlm.report.charts import MARKERS, MUTED, SERIES, STYLE

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
MEASURES = {
    "reward": "reward",
    "words": "words",
    "nll": "NLL under the base model",
    "repetition": "repeated 4-grams",
    "cut": "cut at the limit",
}
LIMITS = DialSettings()
FLUENCY = {"nll": LIMITS.nll_increase, "repetition": LIMITS.repetition_increase, "cut": LIMITS.cut_increase}
"""The limits of ``meet dial``: how far a measure may rise above that of plain `good`."""

Column = list[float | None]
Measures = Mapping[str, Column]


@dataclass(frozen=True)
class Results:
    """The finished arms of a plan.

    Attributes:
        plan: The plan.
        metrics: The metrics by name of the arm.
    """

    plan: Mapping[str, Any]
    metrics: Mapping[str, Any]

    def of(self, experiment: str, name: str) -> list[Any]:
        """Return the metrics of an arm, seed by seed, as far as they are there."""
        names = [arm_name(experiment, name, seed) for seed in self.plan["seeds"]]
        return [self.metrics[name] for name in names if name in self.metrics]


class Cells:
    """One measure of several training runs on the same prompts.

    Args:
        columns: A value per prompt, for each training run.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        prompts = [prompt for column in columns for prompt in range(len(column))]
        runs = [run for run, column in enumerate(columns) for _ in column]
        self.clusters = Clusters(prompts, runs)
        self.values = [value for column in columns for value in column]

    def mean(self, *, is_share: bool = False) -> Interval:
        """Return the mean with its interval."""
        interval = mean(self.values, self.clusters, bounds=(0, 1) if is_share else None)
        assert interval is not None
        return interval

    def minus(self, other: Cells) -> Interval:
        """Return the paired difference over the runs that both have."""
        count = min(len(self.columns), len(other.columns))
        first, second = Cells(self.columns[:count]), Cells(other.columns[:count])
        change = difference(first.values, second.values, first.clusters)
        assert change is not None
        return change.mean


def cells(metrics: Iterable[Measures], measure: str) -> Cells:
    """Return a measure of several runs."""
    return Cells([entry[measure] for entry in metrics])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def shown(interval: Interval, digits: int = 2) -> str:
    """Return an estimate with its interval."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]".replace("-", "−")


def measured_row(metrics: Sequence[Measures]) -> list[str]:
    """Return the cells of all measures."""
    return [
        shown(cells(metrics, "reward").mean()),
        f"{cells(metrics, 'words').mean().value:.1f}",
        *(f"{cells(metrics, name).mean().value:.2f}" for name in FLUENCY),
    ]


def broken(metrics: Sequence[Measures], reference: Sequence[Measures]) -> list[str]:
    """Return the measures of fluency that exceed their limit."""
    changes = {name: cells(metrics, name).minus(cells(reference, name)).value for name in FLUENCY}
    return [f"{MEASURES[name]} +{change:.2f}" for name, change in changes.items() if change > FLUENCY[name]]


def headline(results: Results, task: str) -> list[str]:
    """Return the comparison of methods on a task."""
    systems = {method: results.of("headline", f"{task}-{method}") for method in results.plan["headline"]["methods"]}
    systems = {name: metrics for name, metrics in systems.items() if metrics}
    dials = results.of("dial", task)
    points: dict[str, list[list[Measures]]] = {}
    if dials:
        for by in ("level", "guidance"):
            chosen = [f"{by} {dial['recommended'][by]['recommended']:g}" for dial in dials]
            plain = {"guidance 0": "level 1"}  # no guidance is the plain level
            name = f"MEET, {by} chosen on validation"
            systems[name] = [dial["replies"][plain.get(key, key)] for dial, key in zip(dials, chosen, strict=True)]
            grid = [f"{by} {value:g}" for value in results.plan["dial"]["levels" if by == "level" else "guidance"]]
            points[f"MEET by {by}"] = [[dial["replies"][key] for dial in dials] for key in grid]
    if "MEET" not in systems:
        return []
    heads = ["method", "seeds", *MEASURES.values()]
    rows = [[name, str(len(metrics)), *measured_row(metrics)] for name, metrics in systems.items()]
    text = [table(heads, rows)]
    text.append("Difference in reward from the methods without a dial; bold if significant:\n")
    ours = [name for name in systems if name.startswith("MEET")]
    rows = []
    for baseline in (name for name in systems if name not in ours):
        changes = [cells(systems[name], "reward").minus(cells(systems[baseline], "reward")) for name in ours]
        is_significant = [change.low > 0 or change.high < 0 for change in changes]
        rows.append(
            [baseline, *(f"**{shown(c)}**" if s else shown(c) for c, s in zip(changes, is_significant, strict=True))]
        )
    text.append(table(["minus", *ours], rows) + "\n")
    for by in ("level", "guidance"):
        if dials:
            settings = ", ".join(f"{dial['recommended'][by]['recommended']:g}" for dial in dials)
            text.append(f"- The {by} that `meet dial` recommends for each seed: {settings}.")
    draw_headline(task, systems, points)
    text.append(f"\n![Reward against length and NLL on {task}](experiments-{task}.svg)\n")
    return text


def draw_headline(
    task: str, systems: Mapping[str, Sequence[Measures]], curves: Mapping[str, Sequence[Sequence[Measures]]]
) -> None:
    """Draw reward against length and against NLL: methods as points, MEET's dial as curves."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        for axes, measure in zip(figure.subplots(1, 2, sharey=True), ("words", "nll"), strict=True):
            for number, (name, points) in enumerate(curves.items()):
                x, y = ([cells(point, m).mean().value for point in points] for m in (measure, "reward"))
                axes.plot(x, y, color=(MUTED, "#b4bac2")[number], marker=".", label=f"{name}, all settings", zorder=1)
            for number, (name, metrics) in enumerate(systems.items()):
                x, y = (cells(metrics, m).mean() for m in (measure, "reward"))
                axes.errorbar(
                    x.value, y.value, yerr=[[y.value - y.low], [y.high - y.value]], label=name,
                    color=SERIES[number % len(SERIES)], marker=MARKERS[number % len(MARKERS)], linestyle="", zorder=2,
                )  # fmt: skip
            axes.set_xlabel(MEASURES[measure])
        figure.axes[0].set_ylabel("reward")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.savefig(DOCS / f"experiments-{task}.svg", metadata={"Date": None})


def dial(results: Results, task: str) -> list[str]:
    """Return the measures at each setting of level and guidance, and where fluency breaks."""
    dials = results.of("dial", task)
    if not dials:
        return []
    reference = [entry["replies"]["level 1"] for entry in dials]
    rows = []
    for setting in dials[0]["replies"]:
        metrics = [entry["replies"][setting] for entry in dials]
        reasons = broken(metrics, reference)
        rows.append([setting, *measured_row(metrics), "; ".join(reasons) or "within the limits"])
    return [table(["setting", *MEASURES.values(), "fluency"], rows)]


def quantiles(results: Results) -> list[str]:
    """Return the reward at five levels, its trend and the difference of the ends."""
    runs = results.of("quantiles", results.plan["quantiles"]["task"])
    if not runs:
        return []
    levels = list(runs[0])
    rows = [[level, *measured_row([run[level] for run in runs])] for level in levels]
    by_level = [cells([run[level] for run in runs], "reward") for level in levels]
    trend = find_trend(range(len(levels)), [c.values for c in by_level], by_level[0].clusters)
    ends = by_level[-1].minus(by_level[0])
    rises = "rises" if trend.p < 0.05 else "does not rise significantly"
    return [
        table(["level", *MEASURES.values()], rows),
        f"The reward {rises} with the level (Page's trend test over prompts: p = {trend.p:.2g}); "
        f"{levels[-1]} − {levels[0]}: {shown(ends)}, {len(runs)} seeds.\n",
    ]


def attributes(results: Results) -> list[str]:
    """Return how far each attribute moves its own score and the other's, and the combination left out."""
    full, partial = results.of("attributes", "all"), results.of("attributes", "left-out")
    if not full:
        return []
    scores = {"tone": "reward", "length": "words"}
    parts, rows = [], []
    for attribute, ends in (("tone", ("formal", "casual")), ("length", ("brief", "detailed"))):
        effects = {name: _effect(full, attribute, ends, score) for name, score in scores.items()}
        main_effect, other = effects[attribute], next(value for name, value in effects.items() if name != attribute)
        changes = [f"{shown(change)} ({in_deviations:+.2f} sd)" for change, in_deviations in effects.values()]
        rows.append([attribute, *(text.replace("-", "−") for text in changes), f"{abs(other[1] / main_effect[1]):.2f}"])
    parts.append(f"Seeds: {len(full)}. sd is the standard deviation of the score over all replies.\n")
    parts.append(
        table(
            ["varied attribute", "change in markers per 10 words", "change in words", "side effect / intended effect"],
            rows,
        )
    )
    left_out = results.plan["attributes"]["left_out"]
    cell = "-".join(left_out.values())
    names = {"all combinations": full, f"{cell.replace('-', ' and ')} left out": partial}
    rows = []
    for name, runs in names.items():
        if runs:
            hits = {
                key: [[float(_is_hit(run[key], index, key)) for index in range(len(run[key]["words"]))] for run in runs]
                for key in runs[0]
            }
            seen = [Cells(columns).mean(is_share=True).value for key, columns in hits.items() if key != cell]
            left = shown(Cells(hits[cell]).mean(is_share=True))
            rows.append([name, str(len(runs)), left, f"{np.mean(seen):.2f}"])
    parts.append(
        table(
            ["training data", "seeds", f"replies that are {cell.replace('-', ' and ')}", "other three combinations"],
            rows,
        )
    )
    return parts


def _effect(
    runs: Sequence[Mapping[str, Measures]], attribute: str, ends: tuple[str, str], score: str
) -> tuple[Interval, float]:
    """Return the mean change of a score between two levels, and the same in standard deviations of the score."""
    first, second = (Cells([_by_prompt(run, level, score) for run in runs]) for level in ends)
    deviation = float(np.nanstd(np.array([run[key][score] for run in runs for key in run], dtype=float)))
    change = second.minus(first)
    return change, change.value / deviation


def _by_prompt(run: Mapping[str, Measures], level: str, score: str) -> Column:
    """Return the mean score of each prompt's replies at the combinations with a level."""
    columns = [run[key][score] for key in run if level in key.split("-")]
    return [_mean(values) for values in zip(*columns, strict=True)]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _is_hit(measures: Measures, index: int, cell: str) -> bool:
    """Return whether a reply has the tone and the length of its cell, by the demo's scorers."""
    tone, length = cell.split("-")
    reward, num_words = measures["reward"][index], measures["words"][index]
    is_casual = reward is not None and reward > 0
    return (
        is_casual == (tone == "casual")
        and num_words is not None
        and (num_words > BRIEF_WORDS) == (length == "detailed")
    )


def best_of(results: Results) -> list[str]:
    """Return the reward of the reply that each score picks of eight."""
    runs = results.of("best-of", results.plan["best_of"]["task"])
    if not runs:
        return []
    count = results.plan["best_of"]["replies"]
    picks: dict[str, list[Column]] = {name: [] for name in PICKS}
    for run in runs:
        rewards = np.array(run["reward"], dtype=float).reshape(-1, count)
        picks["random pick"].append(np.nanmean(rewards, axis=1).tolist())
        picks["best possible"].append(np.nanmax(rewards, axis=1).tolist())
        for name in ("levels", "levels per token", "reward model"):
            best = np.array(run[name], dtype=float).reshape(-1, count).argmax(axis=1)
            picks[name].append(rewards[np.arange(len(best)), best].tolist())
    random = Cells(picks["random pick"])
    rows = [
        [name, shown(Cells(columns).mean()), "" if name == "random pick" else shown(Cells(columns).minus(random))]
        for name, columns in picks.items()
    ]
    accuracy = Cells([run["accuracy of the levels"] for run in runs]).mean(is_share=True)
    model = np.mean([run["accuracy of the reward model"][0] for run in runs])
    return [
        table([f"best of {count} by", "reward", "minus random pick"], rows),
        f"Accuracy on the held-out pairs: levels {shown(accuracy)}, reward model {model:.2f} ({len(runs)} seeds).\n",
    ]


def improve(results: Results) -> list[str]:
    """Return the reward of held-out prompts after each round."""
    runs = results.of("improve", results.plan["improve"]["task"])
    if not runs:
        return []
    rounds = [Cells([run["reward"][number] for run in runs]) for number in range(len(runs[0]["reward"]))]
    rows = [
        ["before training" if number == 0 else f"round {number}", shown(column.mean()),
         "" if number == 0 else shown(column.minus(rounds[number - 1]))]
        for number, column in enumerate(rounds)
    ]  # fmt: skip
    return [table(["after", "reward of held-out prompts", "minus the row above"], rows), f"{len(runs)} seeds.\n"]


def scope(results: Results) -> list[str]:
    """Return accuracy, NLL and reward of both scopes."""
    rows = []
    for data in results.plan["scope"]["data"]:
        runs = [results.of("scope", f"{data}-{name}") for name in results.plan["scope"]["scopes"]]
        count = str(min(map(len, runs)))
        for group, measure, name in SCOPE_MEASURES:
            if all(runs) and group in runs[0][0]:
                first, second = (cells([run[group] for run in metrics], measure) for metrics in runs)
                values = (first.mean(), second.mean(), second.minus(first))
                rows.append([data, count, name, *(shown(value, 3) for value in values)])
    return [table(["data", "seeds", "measure", *results.plan["scope"]["scopes"], "difference"], rows)] if rows else []


SCOPE_MEASURES = (
    ("pairs", "accuracy", "preference accuracy"),
    ("pairs", "nll", "NLL of the chosen reply"),
    ("replies", "reward", "reward of replies"),
)
PICKS = ("random pick", "levels", "levels per token", "reward model", "best possible")

INTRODUCTION = f"""# Experiments

`make experiments` runs the experiments of `experiments/plan.yaml`, three seeds each, and writes this page; results in
`experiments/results/` are not computed again. The base model is SmolLM2-135M-Instruct, in f32 on a CPU. Replies are
greedy, at most 96 tokens, to the 40 prompts of the demo's test split. Brackets are 95% intervals over prompts and
training runs ([how](evaluation.md)); if fewer than three seeds are finished, the table has the number. Fluency is
within the limits of `meet dial` if no mean exceeds that of the plain level `good` by more than the limit: NLL under the
base model {FLUENCY["nll"]}, repeated 4-grams {FLUENCY["repetition"]}, replies cut at 96 tokens {FLUENCY["cut"]}.

Two tasks have an exact reward, computed from the reply alone:

- **tone**: pairs of a casual (chosen) and a formal reply from the demo's data, so `good` is casual. The reward is
  casual minus formal markers per ten words.
- **short-words**: replies of the base model to the demo's prompts. Of each prompt's replies the one with the shortest
  words is chosen and the one with the longest is rejected. The reward is minus the mean number of letters per word.

"Level chosen on validation" is the level that `meet dial` recommends on the 20 prompts of the validation split: the one
with the highest reward among those within the limits there. "DPO, rate x 4" is DPO at four times its learning rate.
"""


def main() -> None:
    """Write the page."""
    plan = read_plan()
    arms = Experiments(plan, SILENT).arms()
    results = Results(plan, {arm.name: metrics for arm in arms if (metrics := finished(arm)) is not None})
    sections: dict[str, list[str]] = {}
    for task in plan["headline"]["tasks"]:
        sections[f"Methods and the dial: {task}"] = headline(results, task)
    for task in plan["dial"]["tasks"]:
        sections[f"How far the dial can be turned: {task}"] = dial(results, task)
    sections["Five levels from scores"] = quantiles(results)
    sections["Two attributes"] = attributes(results)
    sections["Best of eight"] = best_of(results)
    sections["Two rounds of improve"] = improve(results)
    sections["A LoRA on the response only"] = scope(results)
    parts = [INTRODUCTION]
    parts += [f"## {title}\n\n" + "\n".join(lines) for title, lines in sections.items() if lines]
    pending = [title for title, lines in sections.items() if not lines]
    if pending:
        parts.append("## Not run yet\n\n" + "".join(f"- {title}\n" for title in pending))
    (DOCS / "experiments.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
