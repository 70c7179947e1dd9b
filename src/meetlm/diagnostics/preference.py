"""Preference accuracy of a policy on held-out pairs: no judge, no sampling.

*Preference accuracy*: did the levels separate? How often log p(chosen|x,good) − log p(chosen|x,bad) exceeds the same
for the rejected completion. A tie counts half, so a control whose levels are equal (a fresh LoRA) has exactly 0.5.

*Reward accuracy*: did the best level move towards the chosen replies? How often log p(chosen|x,good) − log p₀(chosen|x)
exceeds the same for the rejected, p₀ being the base model: DPO's implicit reward (Rafailov et al., 2023, section
5.1), which every method has, also those without levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.encoding import Encoded, Encoder, no_slot
from meetlm.data.example import Example, Weights
from meetlm.diagnostics.intervals import Interval, mean_interval
from meetlm.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class PreferenceAccuracy:
    """The result of :func:`preference_accuracy` and :func:`base_model_accuracy`.

    Attributes:
        pairs: Number of held-out pairs, one per prompt.
        by_sum: Preference accuracy by log-probs summed over a completion's tokens; ``None`` where there is one level.
        by_token: Preference accuracy by their mean over the tokens.
        reward: Reward accuracy, by sums.
        shorter: How often the chosen completion is the shorter one, a tie counting half; ``1 − shorter`` is the
            accuracy of always picking the longer one.
        nll: NLL of the chosen completions at the best level, in nats per token: comparable between methods.
    """

    pairs: int
    by_sum: Interval | None
    by_token: Interval | None
    reward: Interval
    shorter: Interval
    nll: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        levels = f"preference accuracy {self.by_sum} (per token {self.by_token.value:.3f}), " if self.by_token else ""
        return (
            f"{levels}reward accuracy {self.reward} on {self.pairs} pairs; accuracy of always picking the shorter "
            f"reply: {self.shorter.value:.3f}; NLL of the chosen reply: {self.nll:.3f} nats per token"
        )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PreferenceAccuracy:
        """Return what :meth:`to_dict` wrote."""
        values: dict[str, Any] = {n: Interval(**v) if isinstance(v, dict) else v for n, v in fields.items()}
        return cls(**values)


class HeldOutPairs:
    """Held-out pairs, encoded once, chosen and rejected side by side: at each level, and without a control.

    Args:
        encoder: Encoder of the policy's control.
        examples: One per prompt, so that a bootstrap over pairs is one over prompts.

    Attributes:
        levels: Weights of the best and of the worst level; one where there is one.
        by_level: Sequences at each of these levels.
        bare: Sequences without a control, for the base model.
    """

    def __init__(self, encoder: Encoder, examples: Sequence[Example]) -> None:
        def rows(encoder: Encoder, weights: Weights) -> list[Encoded]:
            return [encoder.encode(e.prompt, reply, weights) for e in examples for reply in e.best_and_worst]

        self.levels = tuple(dict.fromkeys((encoder.levels.best, encoder.levels.worst)))
        self.by_level = {level: rows(encoder, level) for level in self.levels}
        self.bare = rows(Encoder(encoder.format, encoder.levels, no_slot), encoder.levels.weights(()))

    @property
    def num_sequences(self) -> int:
        """Number of sequences that a measurement scores."""
        return sum(map(len, self.by_level.values()))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; 0 where there is no pair."""
        return max((len(row.ids) for rows in self.by_level.values() for row in rows), default=0)

    def drop_longer(self, most: int) -> int:
        """Drop pairs with a sequence of more than ``most`` tokens; return the number of dropped pairs."""
        lengths = [max(len(row.ids) for row in rows) for rows in zip(*self.by_level.values(), strict=True)]
        short = [n for n in range(0, len(lengths), 2) if max(lengths[n : n + 2]) <= most]
        both = [index for n in short for index in (n, n + 1)]
        self.by_level = {level: [rows[n] for n in both] for level, rows in self.by_level.items()}
        self.bare = [self.bare[n] for n in both]
        return len(lengths) // 2 - len(short)


def preference_accuracy(
    policy: Policy,
    pairs: HeldOutPairs,
    reference: Tensor,
    *,
    reporter: Reporter = SILENT,
) -> PreferenceAccuracy:
    """Return the accuracy of a policy on held-out pairs.

    Args:
        policy: Scores the pairs; unchanged afterwards.
        pairs: Encoded for the policy's control.
        reference: Log-probs [2P] f64 of ``pairs.bare`` under the base model.
        reporter: Shows the number of sequences that are scored.
    """
    # One call for each level over the same rows: equal shapes, so equal levels give equal bits.
    scored = {level: policy.score(rows, reporter=reporter) for level, rows in pairs.by_level.items()}
    counts = scored[pairs.levels[0]][1]
    return _accuracy(pairs, {level: sums for level, (sums, _) in scored.items()}, counts, reference)


def base_model_accuracy(pairs: HeldOutPairs, reference: Tensor) -> PreferenceAccuracy:
    """Return the accuracy of the base model, which an identity control has too, without scoring anything again.

    Args:
        pairs: Encoded for the control.
        reference: As for :func:`preference_accuracy`.
    """
    counts = torch.tensor([row.num_trained for row in pairs.bare])
    return _accuracy(pairs, dict.fromkeys(pairs.levels, reference), counts, reference)


def _accuracy(
    pairs: HeldOutPairs, logps: dict[Weights, Tensor], counts: Tensor, reference: Tensor
) -> PreferenceAccuracy:
    """Return the accuracy, given log-probs [2P] per level and the number of their tokens [2P]."""
    best, worst = pairs.levels[0], pairs.levels[-1]
    margin, reward = logps[best] - logps[worst], logps[best] - reference
    several = best != worst
    return PreferenceAccuracy(
        pairs=len(counts) // 2,
        by_sum=share_of_pairs(_wins(margin)) if several else None,
        by_token=share_of_pairs(_wins(margin / counts)) if several else None,
        reward=share_of_pairs(_wins(reward)),
        shorter=share_of_pairs(_wins(-counts)),
        nll=float(-logps[best][0::2].sum() / counts[0::2].sum()),
    )


def _wins(values: Tensor) -> NDArray[np.float64]:
    """Return 1 for each pair whose chosen side [0::2] is greater, ½ where the sides are equal."""
    return wins(values[0::2].numpy(), values[1::2].numpy())


def share_of_pairs(outcomes: NDArray[np.float64]) -> Interval:
    """Return the mean of outcomes in [0, 1], one per prompt, with its 95% interval over prompts."""
    return mean_interval(outcomes, range(len(outcomes)), bounds=(0, 1))


def wins(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 where left is greater, ½ where equal, else 0."""
    outcomes: NDArray[np.float64] = (left > right) + 0.5 * (left == right)
    return outcomes
