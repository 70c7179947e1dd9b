"""What held-out pairs say of a policy, with no judge and no sampling.

*Preference accuracy*: did the levels separate? How often log p(chosen|x,good) − log p(chosen|x,bad) exceeds the same
for the rejected completion. A tie counts half, so a control whose levels are equal (a fresh LoRA) has exactly 0.5.

*Reward accuracy*: did the best level move towards the chosen replies? How often log p(chosen|x,good) − log p₀(chosen|x)
exceeds the same for the rejected, p₀ being the untouched model: DPO's implicit reward (Rafailov et al., 2023, section
5.1), which every method has, those without levels too.
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
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.example import PreferenceExample
from meetlm.data.levels import LevelledExample
from meetlm.diagnostics.intervals import Interval, mean_interval
from meetlm.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class PreferenceAccuracy:
    """The result of :func:`preference_accuracy` and :func:`untouched_accuracy`.

    Attributes:
        pairs: Number of held-out pairs, one a prompt.
        by_sum: Preference accuracy with log-probs summed over a completion's tokens; ``None`` where there is one level.
        by_token: With their mean over the tokens.
        reward: Reward accuracy, summed.
        shorter: How often the chosen completion is the shorter one, a tie counting half; ``1 − shorter`` is the
            accuracy of always taking the longer one.
        nll: Mean −log p a token of the chosen completions at the best level, in nats: the same for every method.
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
            f"{levels}reward accuracy {self.reward} on {self.pairs} pairs; the shorter reply {self.shorter.value:.3f}; "
            f"{self.nll:.3f} nats a token of the chosen"
        )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PreferenceAccuracy:
        """Return what :meth:`to_dict` wrote."""
        values: dict[str, Any] = {n: Interval(**v) if isinstance(v, dict) else v for n, v in fields.items()}
        return cls(**values)


class HeldOut:
    """Held-out pairs, encoded once, chosen and rejected side by side: under each level, and bare for the reference.

    Args:
        encoder: Of the policy's control.
        examples: One a prompt, so that the bootstrap over pairs is one over prompts.
    """

    def __init__(self, encoder: Encoder, examples: Sequence[PreferenceExample]) -> None:
        self.levels = (encoder.num_levels - 1, 0) if encoder.num_levels > 1 else (0,)  # best, worst
        none = (0.0,) * encoder.num_levels

        def rows(encoder: Encoder, level: int) -> list[Encoded]:
            replies = [(e.prompt, reply) for e in examples for reply in (e.chosen, e.rejected)]
            return [encoder.encode(LevelledExample(prompt, reply, level)) for prompt, reply in replies]

        self.by_level = {level: rows(encoder, level) for level in self.levels}
        plain = rows(Encoder(encoder.format, [()]), 0)
        self.bare = [Encoded.of_one(one.ids, one.spans[0].start, none) for one in plain]

    @property
    def num_sequences(self) -> int:
        """Sequences that a measurement scores."""
        return sum(map(len, self.by_level.values()))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence; 0 where there is no pair."""
        return max((len(one.ids) for rows in self.by_level.values() for one in rows), default=0)

    def drop_longer(self, most: int) -> int:
        """Leave out pairs with a sequence of more than ``most`` tokens; return how many they were."""
        longer = [max(len(row.ids) for row in rows) for rows in zip(*self.by_level.values(), strict=True)]
        kept = [n for n in range(0, len(longer), 2) if max(longer[n : n + 2]) <= most]
        both = [one for n in kept for one in (n, n + 1)]
        self.by_level = {level: [rows[n] for n in both] for level, rows in self.by_level.items()}
        self.bare = [self.bare[n] for n in both]
        return len(longer) // 2 - len(kept)


def preference_accuracy(
    policy: Policy,
    pairs: HeldOut,
    reference: Tensor,
    *,
    reporter: Reporter = SILENT,
) -> PreferenceAccuracy:
    """Return how a policy tells the two sides of pairs apart.

    Args:
        policy: Scores; left as it was.
        pairs: Encoded for the policy's control.
        reference: Log-probs [2P] f64 of ``pairs.bare`` under the untouched model.
        reporter: Shows the number of sequences that are scored.
    """
    # One call for each level over the same rows: equal shapes, so equal levels give equal bits.
    scored = {level: policy.score(rows, reporter=reporter) for level, rows in pairs.by_level.items()}
    counts = scored[pairs.levels[0]][1]
    return _compared(pairs, {level: found[0] for level, found in scored.items()}, counts, reference)


def untouched_accuracy(pairs: HeldOut, reference: Tensor) -> PreferenceAccuracy:
    """Return the accuracy of the untouched model under a control that is silent, without scoring anything again.

    Args:
        pairs: Encoded for the control.
        reference: As for :func:`preference_accuracy`.
    """
    counts = torch.tensor([row.num_trained for row in pairs.bare])
    return _compared(pairs, dict.fromkeys(pairs.levels, reference), counts, reference)


def _compared(pairs: HeldOut, logps: dict[int, Tensor], counts: Tensor, reference: Tensor) -> PreferenceAccuracy:
    """Return the accuracy that log-probs [2P] of each level have; counts [2P] are their tokens."""
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
    """1 for each pair whose chosen side [0::2] is greater, ½ where the sides are equal."""
    return wins(values[0::2].numpy(), values[1::2].numpy())


def share_of_pairs(outcomes: NDArray[np.float64]) -> Interval:
    """Return the mean of outcomes in [0, 1], one per prompt, with its 95% interval over prompts."""
    return mean_interval(outcomes, range(len(outcomes)), bounds=(0, 1))


def wins(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """1 where left is greater, ½ where equal."""
    outcomes: NDArray[np.float64] = (left > right) + 0.5 * (left == right)
    return outcomes
