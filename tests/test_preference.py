"""Preference accuracy, worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.example import Example, Origin, Prompt, as_reply
from meetlm.data.fitted_levels import PAIRS
from meetlm.data.levels import PAIR_LEVELS
from meetlm.diagnostics.intervals import mean_interval, share_interval
from meetlm.diagnostics.preference import (
    HeldOutPairs,
    PreferenceAccuracy,
    base_model_accuracy,
    preference_accuracy,
)
from meetlm.policy.policy import Policy
from tiny import ARCHITECTURES, TRAINED, encoder_of, pairs, slots_encoder, text_format, tiny_policy

# Per prompt and side: log p under good, log p under bad, trained tokens.
Table = dict[tuple[str, str], tuple[float, float, int]]


class Fake:
    """A policy that looks log-probs up."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def score(self, sequences: Sequence[Encoded], reporter: object = None) -> tuple[torch.Tensor, torch.Tensor]:
        values, counts = [], []
        for sequence in sequences:
            prompt = text_format().decode(list(sequence.ids[: sequence.spans[0].start]))
            reply = text_format().decode(list(sequence.ids[sequence.spans[0].start : -1]))
            good, bad, count = self.table[prompt, reply]
            values.append(good if sequence.spans[0].weights == (0.0, 1.0) else bad)
            counts.append(count)
        return torch.tensor(values, dtype=torch.float64), torch.tensor(counts)


def measure(table: Table) -> Any:
    prompts = dict.fromkeys(prompt for prompt, _ in table)
    examples = [Example.of_pair(Prompt(p), as_reply(" w"), as_reply(" l"), p, Origin("x", 1)) for p in prompts]
    held = HeldOutPairs(slots_encoder(text_format(), [[], []]), PAIRS.apply(examples), PAIR_LEVELS)
    base_logps = torch.full((2 * len(examples),), -4.0, dtype=torch.float64)
    return preference_accuracy(cast(Policy, Fake(table)), held, base_logps)


def accuracy(policy: Policy, encoder: Encoder, examples: list[Example]) -> PreferenceAccuracy:
    """Measure against the policy itself with no level at all."""
    held = HeldOutPairs(encoder, examples, PAIR_LEVELS)
    return preference_accuracy(policy, held, policy.score(held.uncontrolled)[0])


def test_by_hand() -> None:
    result = measure(
        {
            ("a", " w"): (-10.0, -12.0, 4),  # margin 2, 0.5 a token
            ("a", " l"): (-5.0, -6.0, 1),  # margin 1, 1 a token: right by sum, wrong by token
            ("b", " w"): (-10.0, -9.0, 2),  # margin −1
            ("b", " l"): (-8.0, -8.5, 2),  # margin 0.5: wrong
            ("c", " w"): (-7.0, -8.0, 2),  # margin 1
            ("c", " l"): (-3.0, -4.0, 4),  # margin 1: a tie by sum, right by token; chosen is shorter
            ("d", " w"): (-3.0, -4.0, 3),
            ("d", " l"): (-3.0, -2.0, 3),  # right; lengths tie
        }
    )
    assert result.pairs == 4
    assert result.by_sum.value == (1 + 0 + 0.5 + 1) / 4
    assert result.by_token.value == (0 + 0 + 1 + 1) / 4
    assert result.shorter.value == (0 + 0.5 + 1 + 0.5) / 4
    assert result.reward.value == (0 + 0 + 0 + 0.5) / 4  # at good, against −4 each: chosen falls behind, but in d
    assert result.nll == pytest.approx((10 + 10 + 7 + 3) / (4 + 2 + 2 + 3))


def test_ties_count_half() -> None:
    result = measure({(p, side): (-2.0, -3.0, 2) for p in "abc" for side in (" w", " l")})
    assert result.by_sum and result.by_sum.value == 0.5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fresh_lora_is_exactly_one_half(architecture: str) -> None:
    policy = tiny_policy(architecture, "lora", move=0.0, dtype=torch.float32)
    result = accuracy(policy, encoder_of(policy), pairs(20))
    assert result.by_sum and result.by_token
    assert (result.by_sum.value, result.by_token.value, result.reward.value) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("kind", ["lora", "none"])
def test_a_silent_control_is_not_measured_to_know_its_accuracy(kind: str) -> None:
    policy = tiny_policy("llama", kind, move=0.0, dtype=torch.float32)
    held = HeldOutPairs(encoder_of(policy), pairs(20), PAIR_LEVELS)
    reference = policy.score(held.uncontrolled)[0]
    assert policy.control.is_identity()
    measured = preference_accuracy(policy, held, reference).to_dict()
    known = base_model_accuracy(held, reference).to_dict()
    assert known.pop("nll") == pytest.approx(measured.pop("nll"))
    assert known == measured


@pytest.mark.parametrize("kind", TRAINED)
def test_against_scores_one_by_one(kind: str) -> None:
    policy = tiny_policy("llama", kind)
    encoder, examples = encoder_of(policy), pairs(8)
    swapped = [Example.of_pair(e.prompt, *e.replies[::-1], e.group, e.origin) for e in examples]
    examples = PAIRS.apply(other if i % 3 else e for i, (e, other) in enumerate(zip(examples, swapped, strict=True)))
    result = accuracy(policy, encoder, examples)
    wins = []
    for example in examples:
        margins = []
        for side in example.replies:
            prompt = text_format().prompt_ids(example.prompt)
            completion = text_format().completion_ids(example.prompt, side)
            good, bad = (
                float(
                    policy.score(
                        [
                            Encoded.of_one(
                                (*encoder.slot(w), *prompt, *completion), len(encoder.slot(w)) + len(prompt), w
                            )
                        ]
                    )[0]
                )
                for w in ((0.0, 1.0), (1.0, 0.0))
            )
            margins.append(good - bad)
        wins.append(margins[0] > margins[1])
    assert 0 < sum(wins) < 8
    assert result.by_sum and result.by_sum.value == sum(wins) / 8


def test_a_share_interval_has_the_interval_of_an_evaluation() -> None:
    outcomes = np.array([1.0, 0.0, 1.0, 0.5, 1.0])
    assert share_interval(outcomes) == mean_interval(outcomes, range(5), bounds=(0, 1))
    assert str(share_interval(np.ones(3))) == "1.000 [0.292, 1.000]"  # Clopper and Pearson: 0.025 ** (1 / 3)
