"""Calibration of a dial: how a score, fluency and other properties of replies change with the setting of a level.

A setting is a position on the scale of an attribute (0 is its worst level, 1 its best, numbers beyond extrapolate) or a
strength of guidance at its best level. Every setting is measured on the same cells (prompt and sample), so that
settings are compared in pairs. Intervals are over prompts (:mod:`meetlm.diagnostics.intervals`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import stats

from meetlm.config.errors import ConfigError
from meetlm.diagnostics.intervals import Array, Interval, bootstrap, prompt_means
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.statistics import Clusters, difference, mean

DialKind = Literal["level", "guidance"]
MIN_PROMPTS = 8
"""Minimum number of prompts: half of them choose a setting, the other half measure it."""
ALPHA = 0.05
NGRAM = 4


@dataclass(frozen=True, slots=True)
class Curve:
    """A measure of the replies at each setting.

    Attributes:
        name: Its name.
        description: The measure and its unit, in one line.
        higher_is_better: Whether higher is better; ``None`` if neither is.
        values: For each setting, one value per cell; ``None`` if it is not defined.
        means: For each setting, the mean over prompts; ``None`` if no cell has a value.
    """

    name: str
    description: str
    higher_is_better: bool | None
    values: list[Column]
    means: list[Interval | None]

    @classmethod
    def measured(
        cls, name: str, description: str, higher_is_better: bool | None, values: list[Column], clusters: Clusters
    ) -> Curve:
        """Return the curve with the means of values."""
        return cls(name, description, higher_is_better, values, [mean(column, clusters) for column in values])

    @property
    def rising(self) -> list[Column]:
        """The values, with their sign reversed where lower is better."""
        if self.higher_is_better is not False:
            return self.values
        return [[None if value is None else -value for value in column] for column in self.values]


@dataclass(frozen=True, slots=True)
class Trend:
    """Whether a score rises with the setting.

    Attributes:
        p: One-sided p of Page's trend test with prompts as blocks (Page, 1963); 1 if no score varies.
        tau: Mean over prompts of Kendall's τ-b between setting and score, in [-1, 1].
        falls: Adjacent settings between which the score falls, by a 95% interval of the paired difference.
    """

    p: float
    tau: Interval | None
    falls: list[tuple[float, float]]

    @property
    def rises(self) -> bool:
        """Whether the trend is significant and the score falls nowhere."""
        return self.p < ALPHA and not self.falls


@dataclass(frozen=True, slots=True)
class SideEffect:
    """The change of a measure between the ends of the safe range.

    Attributes:
        name: Name of the measure.
        change: Mean paired difference, upper end minus lower end.
        relative: Size of the change in standard deviations, divided by that of the score; ``None`` if either does
            not vary.
    """

    name: str
    change: Interval
    relative: float | None


@dataclass(frozen=True, slots=True)
class Dial:
    """A calibrated dial.

    Attributes:
        attribute: Name of the attribute; empty for the only one of a run.
        by: What varies: the ``level``, or the strength of ``guidance`` at the best level.
        settings: The settings, in increasing order.
        reference: The setting that fluency is compared with.
        prompts: The prompt of each cell.
        score: The score that the dial should change.
        fluency: Measures of fluency, which break at extreme settings.
        others: Further measures.
        trend: Whether the score rises within the safe range.
        broken: Settings at which fluency breaks, with the reason.
        safe: Ends of the range around the reference without broken settings.
        recommended: The safe setting with the best score on half of the prompts.
        gain: Score at the recommended setting minus score at the reference, on the other prompts.
        reach: Score at the upper end of the safe range minus score at the lower end.
        side_effects: Changes of the other measures.
    """

    attribute: str
    by: DialKind
    settings: list[float]
    reference: float
    prompts: list[int]
    score: Curve
    fluency: list[Curve]
    others: list[Curve]
    trend: Trend
    broken: dict[float, str]
    safe: tuple[float, float]
    recommended: float
    gain: Interval | None
    reach: Interval | None
    side_effects: list[SideEffect]

    @property
    def improves(self) -> bool:
        """Whether the recommended setting is better than the reference, by the 95% interval of the gain."""
        if self.gain is None:
            return False
        return self.gain.high < 0 if self.score.higher_is_better is False else self.gain.low > 0

    def limits(self) -> dict[str, Any]:
        """Return what ``meet.json`` records: the safe range, the recommended setting, and their evidence."""
        return {
            "low": self.safe[0],
            "high": self.safe[1],
            "recommended": self.recommended,
            "rises": self.trend.rises,
            "score": self.score.name,
            "num_prompts": len(set(self.prompts)),
            "gain": self.gain and asdict(self.gain),
            "improves": self.improves,
        }


@dataclass(frozen=True, slots=True)
class Pareto:
    """The combinations of two dials that no other combination beats in both scores.

    Attributes:
        attributes: Names of both attributes.
        settings: Pairs of settings.
        scores: Mean of both scores at each pair; lower-is-better scores have their sign reversed.
        front: Indices of the pairs on the front, by increasing first score.
        worst: The corner that the hypervolume is measured from: the least mean of each score.
        hypervolume: Area between this corner and the front.
    """

    attributes: tuple[str, str]
    settings: list[tuple[float, float]]
    scores: list[tuple[float, float]]
    front: list[int]
    worst: tuple[float, float]
    hypervolume: Interval


def repetition(text: str) -> float | None:
    """Return the share of word 4-grams that occur before in the text; ``None`` for a text without any."""
    words = text.split()
    grams = Counter(zip(*(words[start:] for start in range(NGRAM)), strict=False))
    return 1 - len(grams) / grams.total() if grams else None


def calibrate(
    attribute: str,
    settings: Sequence[float],
    clusters: Clusters,
    score: Curve,
    fluency: Sequence[tuple[Curve, float]],
    others: Sequence[Curve],
    *,
    by: DialKind = "level",
) -> Dial:
    """Return the calibration of a dial.

    The reference is the best level without guidance: the setting nearest to 1, or to 0 for guidance. A setting is
    broken if the mean of a measure of fluency exceeds its mean at the reference by more than the limit; settings below
    the worst level are compared with the worst level. Levels from 0 to 1 are never broken: the run was trained on
    them, and short replies, such as those at a level of brevity, have a higher NLL per token. The safe range ends
    before the first broken setting in either direction. Half of the prompts choose the recommended setting and the
    others measure its gain, so that the choice does not bias the gain.

    Args:
        attribute: Name of the attribute; empty for the only one of a run.
        settings: The settings, in increasing order, at least two.
        clusters: The prompt of each cell.
        score: The score that the dial should change.
        fluency: Measures of fluency, each with its largest safe increase.
        others: Further measures.
        by: What varies.

    Raises:
        ConfigError: There are too few prompts or settings, or a setting has no score.
    """
    check_size(settings, len(set(clusters.prompts)))
    for setting, interval in zip(settings, score.means, strict=True):
        if interval is None:
            raise ConfigError(f"{score.name} has no value for any reply at setting {setting:g}")
    best_level = 1 if by == "level" else 0
    reference = min(range(len(settings)), key=lambda index: abs(settings[index] - best_level))
    worst = min(range(len(settings)), key=lambda index: abs(settings[index]))
    broken: dict[float, str] = {}
    for curve, limit in fluency:
        for setting, column in zip(settings, curve.values, strict=True):
            if by == "level" and 0 <= setting <= 1:
                continue
            base = worst if by == "level" and setting < 0 else reference
            change = difference(column, curve.values[base], clusters)
            if change and change.mean.value > limit:
                reason = f"{curve.name} is {change.mean.value:.2f} above that at {settings[base]:g}"
                broken[setting] = f"{broken[setting]}; {reason}" if setting in broken else reason
    low = high = reference
    while low > 0 and settings[low - 1] not in broken:
        low -= 1
    while high < len(settings) - 1 and settings[high + 1] not in broken:
        high += 1
    safe_scores = score.rising[low : high + 1]
    by_prompt = prompt_means(_table(safe_scores), clusters.prompts)
    best = low + int(np.argmax(np.nanmean(by_prompt[::2], axis=0)))
    measures_gain = np.isin(clusters.prompts, np.unique(clusters.prompts)[1::2])
    at_best, at_reference = (
        np.where(measures_gain, column, np.nan) for column in _table([score.values[best], score.values[reference]]).T
    )
    gain = difference(at_best, at_reference, clusters)
    reach, score_size = _change(score, low, high, clusters)
    side_effects = []
    for curve in others:
        effect, size = _change(curve, low, high, clusters)
        if effect:
            relative = size / score_size if score_size and size is not None else None
            side_effects.append(SideEffect(curve.name, effect, relative))
    return Dial(
        attribute,
        by,
        list(settings),
        settings[reference],
        list(clusters.prompts),
        score,
        [curve for curve, _ in fluency],
        list(others),
        find_trend(settings[low : high + 1], safe_scores, clusters),
        broken,
        (settings[low], settings[high]),
        settings[best],
        gain.mean if gain else None,
        reach,
        side_effects,
    )


def check_size(settings: Sequence[float], num_prompts: int) -> None:
    """Refuse a dial of fewer than two settings or too few prompts.

    Raises:
        ConfigError: There are too few settings or prompts, or a setting is not finite.
    """
    for setting in settings:
        if not math.isfinite(setting):
            raise ConfigError(f"--grid: {setting} is not a finite number")
    if len(settings) < 2 or num_prompts < MIN_PROMPTS:
        raise ConfigError(
            f"{len(settings)} settings on {num_prompts} prompts: a dial requires at least 2 settings and {MIN_PROMPTS} "
            "prompts; pass more prompts as --data.path"
        )


def find_trend(settings: Sequence[float], values: Sequence[Column], clusters: Clusters) -> Trend:
    """Return whether values rise with the settings.

    Args:
        settings: In increasing order.
        values: For each setting, one value per cell; higher is better.
        clusters: The prompt of each cell.
    """
    if len(settings) < 2:
        return Trend(1.0, None, [])
    by_prompt = prompt_means(_table(values), clusters.prompts)
    by_prompt = by_prompt[~np.isnan(by_prompt).any(axis=1)]
    p = 1.0
    if len(by_prompt) > 1 and np.ptp(by_prompt, axis=1).any():
        if len(settings) > 2:
            p = float(stats.page_trend_test(by_prompt, method="asymptotic").pvalue)
        else:
            p = float(stats.wilcoxon(by_prompt[:, 1], by_prompt[:, 0], alternative="greater").pvalue)
    taus = np.nan_to_num([stats.kendalltau(settings, scores).statistic for scores in by_prompt])
    falls = []
    for (setting, column), (next_setting, next_column) in pairwise(zip(settings, values, strict=True)):
        change = difference(next_column, column, clusters)
        if change and change.mean.high < 0:
            falls.append((setting, next_setting))
    over_prompts = replace(clusters, prompts=range(len(taus)), runs=None)
    return Trend(p, mean(taus, over_prompts, bounds=(-1, 1)), falls)


def find_front(
    attributes: tuple[str, str],
    settings: Sequence[tuple[float, float]],
    first: Sequence[Column],
    second: Sequence[Column],
    clusters: Clusters,
) -> Pareto:
    """Return the Pareto front of two scores over pairs of settings, and its hypervolume.

    Args:
        attributes: Names of both attributes.
        settings: Pairs of settings.
        first: The first score of each cell, for each pair of settings; higher is better.
        second: The second score.
        clusters: The prompt of each cell.
    """
    columns = _table([*first, *second])
    is_complete = ~np.isnan(columns).any(axis=1)
    if not is_complete.any():
        raise ConfigError("no prompt has both scores at every pair of settings")
    by_prompt = prompt_means(columns[is_complete], np.asarray(clusters.prompts)[is_complete])
    means = by_prompt.mean(axis=0).reshape(2, -1).T
    worst = means.min(axis=0)

    def volumes(resampled: Array) -> Array:
        return np.array([hypervolume(row.reshape(2, -1).T, worst) for row in resampled])

    interval = bootstrap(by_prompt, volumes, seed=clusters.seed, resamples=clusters.resamples)
    scores = [(float(a), float(b)) for a, b in means]
    return Pareto(attributes, list(settings), scores, pareto_front(means), (worst[0].item(), worst[1].item()), interval)


def pareto_front(points: Array) -> list[int]:
    """Return the indices of the points [N, 2] that no other point exceeds in both coordinates, sorted by the first."""
    order = np.lexsort((-points[:, 1], -points[:, 0]))
    front, best = [], -np.inf
    for index in order:
        if points[index, 1] > best:
            front.append(int(index))
            best = points[index, 1]
    return front[::-1]


def hypervolume(points: Array, worst: Array) -> float:
    """Return the area that points [N, 2] dominate, from a corner (Zitzler and Thiele, 1998)."""
    area, height = 0.0, float(worst[1])
    for index in reversed(pareto_front(points)):
        x, y = points[index]
        if x > worst[0] and y > height:
            area += float(x - worst[0]) * float(y - height)
            height = float(y)
    return area


def _table(columns: Sequence[Column]) -> Array:
    """Return columns of values as a table [cells, columns]; NaN if there is no value."""
    return np.array(columns, dtype=np.float64).T


def _change(curve: Curve, low: int, high: int, clusters: Clusters) -> tuple[Interval | None, float | None]:
    """Return the change of a measure between two settings, and its size in standard deviations of the values there."""
    change = difference(curve.values[high], curve.values[low], clusters)
    deviation = float(np.nanstd(_table([curve.values[low], curve.values[high]])))
    if change is None:
        return None, None
    return change.mean, abs(change.mean.value) / deviation if deviation > 0 else None
