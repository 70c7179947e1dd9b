"""The pairs that a reward model is trained and measured on, as ids: read, filtered and accounted for as any run's are.

Both sides of a pair are encoded by :class:`RewardInput`, which scoring uses too: a reply is read the same whether the
data keep white space around it (HH's begin with a space) or a completion has lost it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from transformers import PreTrainedTokenizerBase

from meetlm.config.errors import DataError
from meetlm.data.example import PreferenceExample, Read, fingerprint
from meetlm.data.filters import FilterReport, filter_eval, filter_train, prompt_overlap
from meetlm.data.settings import DataSettings
from meetlm.evaluation.reward_input import Form, Ids, Prompt, RewardInput, form_of, row_of


@dataclass(frozen=True)
class RewardPairs:
    """What a reward model learns from, and what it is measured on.

    Attributes:
        train: Chosen and rejected side of each pair, as ids.
        test: Held-out pairs, one a prompt, of prompts that are not trained on.
        reports: The filters' accounts of both.
        num_seen: Held-out pairs left out because their prompt is trained on.
        fingerprint: A hash of every pair used, in order.
    """

    train: list[tuple[Ids, Ids]]
    test: list[PreferenceExample]
    reports: tuple[FilterReport, FilterReport]
    num_seen: int
    fingerprint: str

    def lines(self) -> list[str]:
        """Return what became of the rows, as lines of text, the rows trained on first."""
        lines = [line for report in self.reports for line in report.lines()]
        seen = f"  left out: {self.num_seen} of them, whose prompts are trained on"
        return [*lines, seen] if self.num_seen else lines

    def held_out(self) -> tuple[list[Prompt], list[str]]:
        """Return prompts and completions of the held-out pairs, chosen and rejected side by side."""
        both = [row_of(example, reply) for example in self.test for reply in (example.chosen, example.rejected)]
        return [prompt for prompt, _ in both], [completion for _, completion in both]


def training_form(tokenizer: PreTrainedTokenizerBase, recorded: object, asked: str, text: bool) -> tuple[Form, str]:
    """Return the form that a reward model is to be trained in, and by what it was told.

    Args:
        tokenizer: Of the model that is trained further.
        recorded: The form that this model, if it is a reward model, was trained in.
        asked: A form, or ``auto``.
        text: Whether the data are texts, as HH's transcripts are, not conversations.

    Raises:
        ConfigError: The tokenizer cannot do what is asked for.
    """
    if asked == "auto" and recorded is None and text and tokenizer.sep_token_id is None:
        return "text", "the data are texts, and the tokenizer has no tokens for two sequences"
    if asked == "auto" and recorded is None and tokenizer.sep_token_id is not None:
        return form_of(tokenizer, None, "pair")[0], "the tokenizer has tokens for two sequences"
    return form_of(tokenizer, recorded, asked)


def prepare_pairs(
    settings: DataSettings, train: Read[PreferenceExample], held: Read[PreferenceExample], encoder: RewardInput
) -> RewardPairs:
    """Filter and encode both splits; a pair is too long where either whole side is.

    Args:
        settings: Lengths and limits.
        train: To train on.
        held: To measure on.
        encoder: Of the model that is trained; it must cut nothing.

    Raises:
        DataError: A row cannot be encoded, or nothing is left of a split.
    """
    assert encoder.most is None, "pairs that are too long are dropped and counted, not cut"

    @cache
    def sides(example: PreferenceExample) -> tuple[Ids, Ids]:
        (prompt, chosen), (_, rejected) = row_of(example, example.chosen), row_of(example, example.rejected)
        both = encoder.encode([prompt, prompt], [chosen, rejected])
        for side in both:
            if isinstance(side, str):
                raise DataError(side, file=example.origin.file, line=example.origin.line)
        one, other = (side for side in both if isinstance(side, Ids))
        return one, other

    def lengths(example: PreferenceExample) -> tuple[int, int, int]:
        one, other = sides(example)
        return max(len(one.ids), len(other.ids)), 0, 0

    kept, of_train = filter_train(train, lengths, settings.max_length, settings.limit_train)
    test, of_test = filter_eval(held, lengths, settings.max_length, limit=settings.limit_eval)
    seen = {example.group for example in prompt_overlap(kept, test)}
    fresh = [example for example in test if example.group not in seen]
    if not fresh:
        raise DataError(
            "every held-out prompt is trained on, so nothing could be measured",
            file=of_test.file,
            expected="held-out rows of other prompts, or data.holdout",
        )
    used = fingerprint((one.prompt, one.chosen, one.rejected) for one in (*kept, *fresh))
    return RewardPairs([sides(example) for example in kept], fresh, (of_train, of_test), len(test) - len(fresh), used)
