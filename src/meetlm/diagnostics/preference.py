"""Preference accuracy of a policy on held-out replies: no judge, no sampling.

*Preference accuracy*: did the levels separate? How often the margin log p(y|x,good) − log p(y|x,bad) is larger for the
chosen completion than for the rejected one. A tie counts half, so a control whose levels are equal (a fresh LoRA) has
exactly 0.5. Good and bad are the best and the worst level of an attribute; of two replies to a prompt, the chosen one
has the higher level. Where levels have no order, good and bad are the levels of the two replies. In data with one reply
per prompt, replies to different prompts are compared.

*Reward accuracy*: did the best level move towards the chosen replies? How often DPO's implicit reward
log p(y|x,good) − log p₀(y|x), with p₀ the base model, is larger for the chosen completion than for the rejected one
(Rafailov et al., 2023, section 5.1). It is defined for every method, also for methods without levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from pydantic import TypeAdapter
from scipy import stats
from torch import Tensor

from meetlm.config.errors import ConfigError
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.encoding import Encoded, Encoder, no_slot
from meetlm.data.example import Example, Weights
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.diagnostics.intervals import Array, Interval, bootstrap, prompt_means, share_interval, wins
from meetlm.policy.policy import Policy

NEIGHBOURS = 4
"""Number of other prompts' replies that a reply is compared with where each prompt has one reply."""


@dataclass(frozen=True, slots=True)
class AttributeAccuracy:
    """Preference accuracy of one attribute.

    Attributes:
        accuracy: Preference accuracy, by sums; ``None`` if no held-out replies at different levels are compared.
        by_levels: The same for each pair of levels, such as ``q0 < q2``, without its interval.
        rank_correlation: Spearman's correlation of log p(y|x,best) − log p(y|x,worst) with the level in the data, over
            all replies; ``None`` if levels have no order, or all values are equal.
        most_likely: How often the level in the data gives a reply the highest log-prob; ``None`` if levels are
            ordered, or no held-out reply has one.
    """

    accuracy: Interval | None
    by_levels: dict[str, float]
    rank_correlation: Interval | None
    most_likely: Interval | None

    def lines(self, name: str) -> list[str]:
        """Return the result as lines of text."""
        parts = [f"{name}: accuracy {self.accuracy or 'unknown (no held-out replies at different levels)'}"]
        if self.rank_correlation:
            parts.append(f"rank correlation with the level in the data {self.rank_correlation}")
        if self.most_likely:
            parts.append(f"level in the data is the most likely {self.most_likely}")
        by_levels = ", ".join(f"{levels} {value:.3f}" for levels, value in self.by_levels.items())
        return [", ".join(parts), *([f"  {by_levels}"] if len(self.by_levels) > 1 else [])]


@dataclass(frozen=True, slots=True)
class PreferenceAccuracy:
    """The result of :func:`preference_accuracy` and :func:`base_model_accuracy`.

    Attributes:
        pairs: Number of pairs of held-out replies.
        by_sum: Preference accuracy by log-probs summed over a completion's tokens; ``None`` if there is one level.
        by_token: Preference accuracy by log-probs averaged over a completion's tokens.
        reward: Reward accuracy, by summed log-probs.
        shorter: How often the chosen completion is the shorter one, a tie counting half; ``1 − shorter`` is the
            accuracy of always picking the longer one.
        nll: NLL of the replies at the best level (of all replies where levels have no order), in nats per token:
            comparable between methods.
        attributes: Accuracy of each attribute, by its name; empty for pairs and where there is one level.
    """

    pairs: int
    by_sum: Interval | None
    by_token: Interval | None
    reward: Interval
    shorter: Interval
    nll: float
    attributes: dict[str, AttributeAccuracy] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PreferenceAccuracy:
        """Return what :meth:`to_dict` wrote.

        Raises:
            ValueError: A field is missing or wrong.
        """
        return TypeAdapter(cls).validate_python(fields)

    def __str__(self) -> str:
        levels = f"preference accuracy {self.by_sum} (per token {self.by_token.value:.3f}), " if self.by_token else ""
        summary = (
            f"{levels}reward accuracy {self.reward} on {self.pairs} pairs; accuracy of always picking the shorter "
            f"reply: {self.shorter.value:.3f}; NLL of the chosen reply: {self.nll:.3f} nats per token"
        )
        attributes = [line for name, accuracy in self.attributes.items() for line in accuracy.lines(name or "levels")]
        return "\n  ".join([summary, *attributes])


class ReplyPair(NamedTuple):
    """Two held-out replies that show different levels of an attribute.

    Attributes:
        attribute: The attribute.
        better: Index of the reply with the higher level (the first level where levels have no order).
        worse: Index of the other reply.
        levels: Indices of the levels that they show, that of the better reply first.
        compared: Indices of the good and the bad level of the margin: the best and the worst level of the attribute, or
            ``levels`` where levels have no order.
    """

    attribute: str
    better: int
    worse: int
    levels: tuple[int, int]
    compared: tuple[int, int]


class HeldOutPairs:
    """Held-out replies, encoded once: at the levels to compare, and without a control.

    Args:
        encoder: Encoder of the policy's control.
        examples: Held-out examples with level weights; the replies to a prompt are compared with each other.
        levels: Levels of the data. The control has all of them, or only the best level.

    Attributes:
        levels: Levels of the data.
        has_levels: Whether the control has all levels of the data.
        is_pairwise: Whether all examples are pairs.
        by_level: Sequences of all replies at each compared level of the control, by its index.
        uncontrolled: Sequences without a control, for the base model.
        prompts: Number of the prompt of each reply.
        pairs: The pairs of replies.

    Raises:
        ConfigError: All replies show the same levels.
    """

    def __init__(self, encoder: Encoder, examples: Sequence[Example], levels: LevelSpace) -> None:
        self.levels, self.has_levels = levels, len(encoder.levels) > 1
        self.is_pairwise = all(example.is_pair for example in examples)
        replies = [(example, completion) for example in examples for completion in example.completions]
        numbers: dict[str, int] = {}
        self.prompts = [numbers.setdefault(example.group, len(numbers)) for example, _ in replies]
        self._weights = [completion.weights for _, completion in replies]

        def rows(encoder: Encoder, weights: Iterable[Weights]) -> list[Encoded]:
            return [encoder.encode(e.prompt, c.reply, w) for (e, c), w in zip(replies, weights, strict=True)]

        self.by_level = {k: rows(encoder, [self._with_level(w, k) for w in self._weights]) for k in self.compared}
        no_level = encoder.levels.weights(())
        self.uncontrolled = rows(Encoder(encoder.format, encoder.levels, no_slot), [no_level] * len(replies))
        self.pairs = self._find_pairs()

    @property
    def compared(self) -> list[int]:
        """The levels at which replies are scored: best and worst of an ordered attribute, all of an unordered one."""
        if not self.has_levels:
            return [0]
        ranges = [(a, self.levels.ranges[a.name]) for a in self.levels.attributes]
        return [k for a, levels in ranges for k in ((levels[-1], levels[0]) if a.is_ordered else levels)]

    @property
    def top(self) -> list[int]:
        """The replies at the best level of the first ordered attribute; all replies where there is none."""
        best = self._best
        at_top = [reply for reply, weights in enumerate(self._weights) if best is None or weights[best]]
        return at_top or list(range(len(self._weights)))

    @property
    def _best(self) -> int | None:
        """The best level of the first ordered attribute of the data."""
        ordered = [attribute for attribute in self.levels.attributes if attribute.is_ordered]
        return self.levels.ranges[ordered[0].name][-1] if ordered else None

    def at_best(self, logps: dict[int, Array]) -> Array:
        """Return the log-probs [C] at the best level; without an order, at a reply's level of the first attribute."""
        if not self.has_levels:
            return logps[0]
        if self._best is not None:
            return logps[self._best]
        first = self.levels.ranges[self.levels.attributes[0].name]
        shown = [next((k for k in first if weights[k]), first[0]) for weights in self._weights]
        return np.array([logps[k][reply] for reply, k in enumerate(shown)])

    def shown(self, attribute: str) -> tuple[list[int], list[int]]:
        """Return the replies that show a level of an attribute, and the indices of these levels."""
        levels = self.levels.ranges[attribute]
        pairs = [(n, k) for n, weights in enumerate(self._weights) for k in levels if weights[k]]
        return [reply for reply, _ in pairs], [level for _, level in pairs]

    def _with_level(self, weights: Weights, level: int) -> Weights:
        """Return a reply's level weights with another level of the same attribute."""
        if not self.has_levels:
            return (1.0,)
        same = next(levels for levels in self.levels.ranges.values() if level in levels)
        return tuple(float(k == level) if k in same else weight for k, weight in enumerate(weights))

    def _find_pairs(self) -> list[ReplyPair]:
        """Return the pairs: replies to one prompt at different levels, else replies to neighbouring prompts."""
        by_prompt: dict[int, list[int]] = defaultdict(list)
        for reply, prompt in enumerate(self.prompts):
            by_prompt[prompt].append(reply)
        pairs = self._differing([pair for replies in by_prompt.values() for pair in combinations(replies, 2)])
        if not pairs:
            num_replies = len(self.prompts)
            steps = range(1, min(NEIGHBOURS, num_replies - 1) + 1)
            pairs = self._differing([(i, (i + step) % num_replies) for i in range(num_replies) for step in steps])
        if not pairs and self.prompts:
            raise ConfigError("all held-out replies show the same level, so preference accuracy cannot be measured")
        return pairs

    def _differing(self, candidates: Sequence[tuple[int, int]]) -> list[ReplyPair]:
        """Return the pairs of replies that show different levels of an attribute, for each attribute."""
        pairs = []
        for attribute in self.levels.attributes:
            levels = self.levels.ranges[attribute.name]
            level_of = dict(zip(*self.shown(attribute.name), strict=True))
            for left, right in candidates:
                if left not in level_of or right not in level_of or level_of[left] == level_of[right]:
                    continue
                better, worse = sorted((left, right), key=lambda reply: -level_of[reply])
                shown = level_of[better], level_of[worse]
                compared = (levels[-1], levels[0]) if attribute.is_ordered else shown
                pairs.append(ReplyPair(attribute.name, better, worse, shown, compared))
        return pairs

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; 0 if there is no reply."""
        return max((len(row.ids) for rows in self.by_level.values() for row in rows), default=0)

    def drop_longer(self, max_tokens: int) -> int:
        """Drop prompts with a sequence of more than ``max_tokens`` tokens; return the number of dropped prompts."""
        lengths = [max(len(row.ids) for row in rows) for rows in zip(*self.by_level.values(), strict=True)]
        dropped = {prompt for prompt, length in zip(self.prompts, lengths, strict=True) if length > max_tokens}
        if dropped:
            remaining = [reply for reply, prompt in enumerate(self.prompts) if prompt not in dropped]
            self.by_level = {level: [rows[n] for n in remaining] for level, rows in self.by_level.items()}
            self.uncontrolled = [self.uncontrolled[n] for n in remaining]
            self._weights = [self._weights[n] for n in remaining]
            self.prompts = [self.prompts[n] for n in remaining]
            self.pairs = self._find_pairs()
        return len(dropped)


def preference_accuracy(
    policy: Policy,
    pairs: HeldOutPairs,
    reference: Tensor,
    *,
    reporter: Reporter = SILENT,
) -> PreferenceAccuracy:
    """Return the accuracy of a policy on held-out pairs.

    Args:
        policy: Scores the replies; unchanged afterwards.
        pairs: Encoded for the policy's control.
        reference: Log-probs [C] f64 of ``pairs.uncontrolled`` under the base model.
        reporter: Shows the number of sequences that are scored.
    """
    # One call for each level over the same rows: equal shapes, so equal levels give equal bits.
    scored = {level: policy.score(rows, reporter=reporter) for level, rows in pairs.by_level.items()}
    counts = scored[pairs.compared[0]][1]
    return _accuracy(
        pairs, {level: sums.numpy() for level, (sums, _) in scored.items()}, counts.numpy(), reference.numpy()
    )


def base_model_accuracy(pairs: HeldOutPairs, reference: Tensor) -> PreferenceAccuracy:
    """Return the accuracy of the base model, which an identity control has too, without scoring anything again.

    Args:
        pairs: Encoded for the control.
        reference: As for :func:`preference_accuracy`.
    """
    counts = np.array([row.num_trained for row in pairs.uncontrolled])
    return _accuracy(pairs, dict.fromkeys(pairs.compared, reference.numpy()), counts, reference.numpy())


def _accuracy(pairs: HeldOutPairs, logps: dict[int, Array], counts: Array, reference: Array) -> PreferenceAccuracy:
    """Return the accuracy, given log-probs [C] per level and the number of their tokens [C]."""
    replies = np.array([(pair.better, pair.worse) for pair in pairs.pairs])
    prompts = [pairs.prompts[pair.better] for pair in pairs.pairs]

    def accuracy(values: Array) -> Interval:
        """Return how often the better reply of a pair has the larger value, given the values of both [P, 2]."""
        return share_interval(wins(*values.T), prompts)

    at_best = pairs.at_best(logps)
    by_sum = by_token = None
    attributes = {}
    if pairs.has_levels:
        margins = np.array(
            [
                [logps[good][reply] - logps[bad][reply] for reply in (better, worse)]
                for _, better, worse, _, (good, bad) in pairs.pairs
            ]
        )
        by_sum, by_token = accuracy(margins), accuracy(margins / counts[replies])
        if not pairs.is_pairwise:
            outcomes = wins(*margins.T)
            attributes = {a.name: _of_attribute(pairs, a, logps, outcomes) for a in pairs.levels.attributes}
    return PreferenceAccuracy(
        pairs=len(pairs.pairs),
        by_sum=by_sum,
        by_token=by_token,
        reward=accuracy((at_best - reference)[replies]),
        shorter=accuracy(-counts[replies]),
        nll=float(-at_best[pairs.top].sum() / counts[pairs.top].sum()),
        attributes=attributes,
    )


def _of_attribute(
    pairs: HeldOutPairs, attribute: Attribute, logps: dict[int, Array], outcomes: Array
) -> AttributeAccuracy:
    """Return the accuracy of one attribute, given the outcomes of all pairs."""
    levels = pairs.levels.ranges[attribute.name]
    names = dict(zip(levels, attribute.levels, strict=True))
    of_attribute = [
        (pair, outcome) for pair, outcome in zip(pairs.pairs, outcomes, strict=True) if pair.attribute == attribute.name
    ]
    by_levels: dict[tuple[int, int], list[float]] = defaultdict(list)
    for pair, outcome in of_attribute:
        by_levels[pair.levels].append(outcome)
    sign = "<" if attribute.is_ordered else "/"
    replies, shown = pairs.shown(attribute.name)
    prompts = [pairs.prompts[reply] for reply in replies]
    rank_correlation = most_likely = None
    if attribute.is_ordered:
        margins = (logps[levels[-1]] - logps[levels[0]])[replies]
        rank_correlation = spearman(margins, np.array(shown), prompts)
    elif len(replies):
        likeliest = np.stack([logps[k][replies] for k in levels]).argmax(axis=0) + levels[0]
        most_likely = share_interval((likeliest == np.array(shown)).astype(float), prompts)
    accuracy = None
    if of_attribute:
        better = [pairs.prompts[pair.better] for pair, _ in of_attribute]
        accuracy = share_interval([outcome for _, outcome in of_attribute], better)
    return AttributeAccuracy(
        accuracy=accuracy,
        by_levels={
            f"{names[low]} {sign} {names[high]}": float(np.mean(values))
            for (high, low), values in sorted(by_levels.items())
        },
        rank_correlation=rank_correlation,
        most_likely=most_likely,
    )


def spearman(left: Array, right: Array, prompts: Sequence[int | str]) -> Interval | None:
    """Return Spearman's rank correlation of two columns with its 95% interval over prompts.

    Ranks are computed once, over all rows; resamples draw prompts with the ranks of their rows. ``None`` if a column
    is constant.
    """
    if not left.size or np.ptp(left) == 0 or np.ptp(right) == 0:
        return None
    x, y = (stats.zscore(stats.rankdata(column)) for column in (left, right))
    table = prompt_means(np.stack([x, y, x * x, y * y, x * y], axis=1), prompts)

    def correlation(means: Array) -> Array:
        mean_x, mean_y, xx, yy, xy = means.T
        correlations: Array = (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))
        return correlations

    with np.errstate(invalid="ignore", divide="ignore"):
        return bootstrap(table, correlation)
