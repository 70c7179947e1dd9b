"""The levels as a reward model: log p(reply | prompt, best level) − log p(reply | prompt, worst level)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from meetlm.config.errors import ConfigError
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.encoding import Encoded, Encoder, example_lengths
from meetlm.data.example import Example, Prompt, Turn, Weights
from meetlm.data.filters import FilterReport, filter_eval, filter_train
from meetlm.data.fitted_levels import PAIRS, FittedLevels, merge_prompts
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import PromptFormat
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.data.splits import read_splits
from meetlm.diagnostics.intervals import Interval, share_interval, wins
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import RewardSettings
from meetlm.policy.loading import check_positions, num_positions
from meetlm.policy.policy import Policy
from meetlm.run.levels import check_scale


@dataclass(frozen=True, slots=True)
class LevelScore:
    """The score of a reply in nats.

    Attributes:
        total: Summed over the tokens of the reply, end token included.
        per_token: The mean over these tokens, for replies of different lengths.
    """

    total: float
    per_token: float


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """The scores of a pair.

    Attributes:
        example: The pair: both replies alone, the chosen reply first.
        chosen: Score of the chosen reply.
        rejected: Score of the rejected reply.
    """

    example: Example
    chosen: LevelScore
    rejected: LevelScore

    @property
    def margin(self) -> float:
        """Score of the chosen minus score of the rejected reply; negative where the levels disagree with the data."""
        return self.chosen.total - self.rejected.total

    def to_dict(self) -> dict[str, Any]:
        """Return file and line, replies, scores and margin as JSON values."""
        chosen, rejected = self.example.best_and_worst
        return {
            "origin": str(self.example.origin),
            "prompt": self.example.prompt.to_json(),
            "chosen": chosen.content,
            "rejected": rejected.content,
            "score_chosen": asdict(self.chosen),
            "score_rejected": asdict(self.rejected),
            "margin": self.margin,
        }


def score_replies(
    policy: Policy,
    encoder: Encoder,
    rows: Sequence[tuple[Prompt, Turn]],
    attribute: str | None = None,
    *,
    reporter: Reporter = SILENT,
) -> list[LevelScore]:
    """Return the score of each reply.

    Args:
        policy: The trained policy.
        encoder: Encoder of its control.
        rows: Prompts and replies.
        attribute: Attribute whose best and worst level are compared, while the others have no effect; by default all
            ordered attributes together.
        reporter: Shows the number of sequences.

    Raises:
        ConfigError: The levels have no best and worst, the attribute is unknown, or a reply exceeds the model's
            positions.
    """
    best, worst = _ends(encoder.levels, attribute)

    def encode(weights: Weights) -> list[Encoded]:
        sequences = [encoder.encode(prompt, reply, weights) for prompt, reply in rows]
        for sequence in sequences:
            check_positions(policy.lm, len(sequence.ids), "the prompt with its completion")
        return sequences

    at_best, counts = policy.score(encode(best), reporter=reporter)
    at_worst, _ = policy.score(encode(worst), reporter=reporter)
    totals = at_best - at_worst
    return [LevelScore(*values) for values in zip(totals.tolist(), (totals / counts).tolist(), strict=True)]


def score_pairs(
    policy: Policy,
    encoder: Encoder,
    examples: Sequence[Example],
    attribute: str | None = None,
    *,
    reporter: Reporter = SILENT,
) -> list[ScoredPair]:
    """Return the scores of pairs: the replies at the highest and the lowest level of each prompt.

    Pairs that exceed the model's positions are left out, with a message.

    Args:
        policy: The trained policy.
        encoder: Encoder of its control.
        examples: Examples with level weights.
        attribute: Attribute that orders and scores the replies; it may be missing where a run has one attribute.
        reporter: Shows messages and the number of sequences.

    Raises:
        ConfigError: No prompt has replies at different levels, or the attribute is no scale from worst to best.
    """
    levels = encoder.levels
    if attribute is None and len(levels.attributes) > 1:
        names = ", ".join(each.name for each in levels.attributes)
        raise ConfigError(
            f"the run has several attributes ({names}): choose the one that orders two replies with --attribute"
        )
    attribute = levels.attributes[0].name if attribute is None else attribute
    best, _ = _ends(levels, attribute)
    comparable = [pair for example in examples if (pair := _highest_and_lowest(example, levels.ranges[attribute]))]
    of = f" of {attribute}" if attribute else ""
    if examples and not comparable:
        raise ConfigError(f"the data have no prompt with replies at different levels{of}: there is nothing to compare")
    if len(comparable) < len(examples):
        count = len(examples) - len(comparable)
        reporter.message(f"{count} prompts without replies at different levels{of} are left out")
    limit, slot = num_positions(policy.lm), len(encoder.slot(best))

    def length(example: Example) -> int:
        tokens = example_lengths(encoder.format, example)
        return slot + tokens.prompt + max(tokens.replies)

    usable = [example for example in comparable if limit is None or length(example) <= limit]
    if len(usable) < len(comparable):
        reporter.message(f"{len(comparable) - len(usable)} pairs of more than {limit} tokens (the model) are left out")
    rows = [(example.prompt, reply) for example in usable for reply in example.best_and_worst]
    scores = score_replies(policy, encoder, rows, attribute, reporter=reporter) if rows else []
    return [ScoredPair(*values) for values in zip(usable, scores[::2], scores[1::2], strict=True)]


def _ends(levels: LevelSpace, attribute: str | None) -> tuple[Weights, Weights]:
    """Return the weights of the best and the worst level of an attribute; of all ordered ones if it is ``None``."""
    best, worst = levels.best, levels.worst
    if attribute is not None:
        check_scale(levels, attribute)
        indices = levels.ranges[attribute]
        best, worst = levels.weights([indices[-1]]), levels.weights([indices[0]])
    if best == worst:
        raise ConfigError("the run has only one level, but scores compare the best level with the worst")
    return best, worst


def _highest_and_lowest(example: Example, indices: range) -> Example | None:
    """Return an example with the replies at its highest and its lowest level alone; ``None`` without two levels.

    Args:
        example: A pair, or replies with level weights.
        indices: Indices of the levels of one attribute, worst first.
    """
    if example.is_pair:
        return example
    shown = [
        (max(indices, key=lambda k: completion.weights[k]), completion)
        for completion in example.completions
        if any(completion.weights[k] for k in indices)
    ]
    shown.sort(key=lambda pair: pair[0], reverse=True)
    if not shown or shown[0][0] == shown[-1][0]:
        return None
    return replace(example, completions=(shown[0][1], shown[-1][1]))


def accuracy(pairs: Sequence[ScoredPair], *, per_token: bool = False) -> Interval:
    """Return how often the chosen reply has the higher score, a tie counting half, with its 95% interval."""
    name = "per_token" if per_token else "total"
    chosen, rejected = (
        np.array([getattr(getattr(pair, reply), name) for pair in pairs]) for reply in ("chosen", "rejected")
    )
    return share_interval(wins(chosen, rejected))


def reward_accuracy(settings: RewardSettings, pairs: Sequence[ScoredPair], *, reporter: Reporter = SILENT) -> Interval:
    """Return the accuracy of a reward model on the same pairs.

    Raises:
        ConfigError: The model cannot be loaded, or a reply has no reward.
    """
    model = RewardModel.load(settings)
    examples = [pair.example for pair in pairs]
    prompts = [example.prompt for example in examples for _ in range(2)]
    replies = [reply.content for example in examples for reply in example.best_and_worst]
    rewards = model.score(model.tokenize(prompts, replies), reporter=reporter)
    if None in rewards:
        raise ConfigError(f"{rewards.count(None)} of {len(rewards)} replies have no reward by {settings.model}")
    return share_interval(wins(np.array(rewards[::2]), np.array(rewards[1::2])))


def suspects(pairs: Sequence[ScoredPair]) -> list[ScoredPair]:
    """Return the pairs whose rejected reply has the higher score, the largest difference first."""
    return sorted((pair for pair in pairs if pair.margin < 0), key=lambda pair: pair.margin)


def read_pairs(
    settings: DataSettings, prompt_format: PromptFormat, levels: FittedLevels | None, *, train: bool = False
) -> tuple[list[Example], FilterReport]:
    """Return the examples of the training split, or the held-out ones, best reply first, and the filters' report.

    Args:
        settings: Settings of the data.
        prompt_format: Counts tokens for the filters.
        levels: Level schemes of the run, which order the replies of data that are not pairs; ``None`` for pairs.
        train: Read the training split.

    Raises:
        DataError: The data cannot be read, no row can be used, or a reply has feedback without a level.
    """
    lengths = partial(example_lengths, prompt_format)
    if train:
        read = read_splits(settings)[0] if settings.holdout else read_examples(settings, "train")
        examples, report = filter_train(read, lengths, settings.max_length, settings.limit_train)
    else:
        read = read_splits(settings)[1] if settings.holdout else read_examples(settings, "eval")
        examples, report = filter_eval(read, lengths, settings.max_length, limit=settings.limit_eval)
    schemes = PAIRS if levels is None or all(example.is_pair for example in examples) else levels
    return schemes.apply(merge_prompts(examples)), report
