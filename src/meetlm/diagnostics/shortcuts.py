"""Rules that find the chosen reply without understanding either reply.

A control learns the easiest difference between its levels. If that is length, a stock reply or a phrase, the level
"good" comes to mean it. The accuracy of each rule is the share of pairs in which it finds the chosen reply, with ties
counted as half, so it can be compared with preference accuracy. The rules need neither model nor tokenizer.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse, special

from meetlm.data.example import Example, Turn
from meetlm.diagnostics.intervals import Interval, share_interval, wins

FOLDS = 5
MAX_FEATURES = 20_000
RIDGE = 10.0
"""Strength of the penalty in units of pairs: RIDGE / 2 · |w|² is added to the sum of the losses."""

WORD = re.compile(r"\w+|[^\w\s]")
Z95 = 1.959964


def half_width(num_prompts: int, mean: float) -> float:
    """Return half the width of the 95% interval of a share near ``mean``, by the normal approximation."""
    return Z95 * math.sqrt(mean * (1 - mean) / num_prompts)


def prompts_for(half: float, mean: float) -> int:
    """Return the number of prompts for an interval of ± ``half``: the inverse of :func:`half_width`."""
    return math.ceil(mean * (1 - mean) * (Z95 / half) ** 2)


def longer_is_chosen(chosen: Sequence[int], rejected: Sequence[int], groups: Sequence[str]) -> Interval:
    """Return how often the chosen reply is the longer one, given the lengths of both sides."""
    return share_interval(wins(np.asarray(chosen, float), np.asarray(rejected, float)), groups)


def repeated_replies(examples: Sequence[Example]) -> tuple[Interval, int]:
    """Return how often guessing from the other rows finds the chosen reply, and the number of rows with such a reply.

    The guess is the reply that is chosen more often and rejected less often in the *other* rows; rows whose two replies
    occur nowhere else count half.
    """
    pairs = [example.best_and_worst for example in examples]
    num_chosen, num_rejected = (Counter(pair[side] for pair in pairs) for side in (0, 1))
    chosen = np.array([num_chosen[best] - num_rejected[best] - 1.0 for best, _ in pairs])
    rejected = np.array([num_chosen[worst] - num_rejected[worst] + 1.0 for _, worst in pairs])
    num_repeated = sum(max(num_chosen[reply] + num_rejected[reply] for reply in pair) > 1 for pair in pairs)
    return share_interval(wins(chosen, rejected), [e.group for e in examples]), num_repeated


def opening_features(reply: Turn) -> set[str]:
    """Return the first word, the first two and the first three of a reply, in lower case."""
    words = _words(reply)[:3]
    return {" ".join(words[:n]) for n in range(1, len(words) + 1)}


def word_features(reply: Turn) -> set[str]:
    """Return the distinct words and punctuation marks of a reply, in lower case."""
    return set(_words(reply))


def surface_accuracy(
    chosen: Sequence[set[str]], rejected: Sequence[set[str]], groups: Sequence[str]
) -> tuple[Interval, list[str], list[str]]:
    """Return the held-out accuracy of a logistic regression on features, and the strongest features of both sides.

    The model is Bradley-Terry's: the chosen reply wins with the log-odds w · (φ(chosen) − φ(rejected)), so it
    has no intercept and 0.5 is chance. Five folds; rows of one prompt are in one fold. Features that occur
    only once cannot help on other rows and are omitted.

    Args:
        chosen: The features of each chosen reply.
        rejected: The features of each rejected reply.
        groups: The group (prompt or post) of each row.

    Returns:
        Accuracy; up to three features with the largest weight for the chosen side, and for the rejected side.
    """
    counts = Counter(feature for pair in zip(chosen, rejected, strict=True) for feature in pair[0] | pair[1])
    names = [name for name, count in counts.most_common(MAX_FEATURES) if count > 1]
    table = _differences(chosen, rejected, {name: index for index, name in enumerate(names)})
    fold = np.array([zlib.crc32(group.encode()) % FOLDS for group in groups])
    outcomes = np.full(len(groups), 0.5)
    for number in range(FOLDS):
        is_held_out = fold == number
        if is_held_out.any() and not is_held_out.all():
            margins = table[is_held_out] @ _fit(table[~is_held_out])
            outcomes[is_held_out] = wins(margins, np.zeros_like(margins))
    weights = _fit(table)
    order = [int(i) for i in np.argsort(-weights, kind="stable")]
    best = [names[i] for i in order[:3] if weights[i] > 0]
    worst = [names[i] for i in order[::-1][:3] if weights[i] < 0]
    return share_interval(outcomes, groups), best, worst


def _fit(table: sparse.csr_matrix) -> NDArray[np.float64]:
    """Return the weights that minimise Σ log(1 + exp(−x·w)) + RIDGE / 2 · |w|² over the rows x."""

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = table @ weights
        value = np.logaddexp(0, -margin).sum() + RIDGE / 2 * weights @ weights
        return float(value), RIDGE * weights - table.T @ special.expit(-margin)

    start = np.zeros(table.shape[1])
    weights: NDArray[np.float64]
    weights = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return weights


def _differences(chosen: Sequence[set[str]], rejected: Sequence[set[str]], column: dict[str, int]) -> sparse.csr_matrix:
    """Return φ(chosen) − φ(rejected), one row per pair; features of both replies cancel."""
    entries = [
        (row, index, sign)
        for row, sides in enumerate(zip(chosen, rejected, strict=True))
        for sign, features in ((1.0, sides[0] - sides[1]), (-1.0, sides[1] - sides[0]))
        # sorted, because sums of floats depend on the order, and the order of a set depends on the process
        for index in sorted(column[feature] for feature in features if feature in column)
    ]
    rows, columns, signs = zip(*entries, strict=True) if entries else ((), (), ())
    return sparse.csr_matrix((signs, (rows, columns)), shape=(len(chosen), len(column)))


def _words(reply: Turn) -> list[str]:
    return WORD.findall(reply.content.lower())
