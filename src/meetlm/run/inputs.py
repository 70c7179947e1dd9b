"""The inputs of a run: its training sequences and its held-out pairs, encoded for its control."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from meetlm.config.errors import ConfigError
from meetlm.config.reporter import Reporter
from meetlm.controls.base import Control
from meetlm.data.filters import prompt_overlap
from meetlm.data.formats import Item, make_items
from meetlm.data.prompt_format import PromptFormat
from meetlm.diagnostics.preference import HeldOutPairs
from meetlm.policy.loading import check_positions, embedding_rows, num_positions
from meetlm.recipes.config import RunConfig
from meetlm.run.prepared import PreparedData


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The inputs of a run.

    Attributes:
        items: Training sequences of each pair, by data format.
        pairs: Held-out pairs.
        longest: Tokens of the longest training sequence.
    """

    items: dict[str, list[Item]]
    pairs: HeldOutPairs
    longest: int


def encode_inputs(
    config: RunConfig,
    data: PreparedData,
    prompt_format: PromptFormat,
    lm: PreTrainedModel,
    control: Control,
    reporter: Reporter,
) -> RunInputs:
    """Return the inputs of a run; warn of held-out prompts in the training data and of stages with few steps.

    Args:
        config: Configuration of the run.
        data: Its rows.
        prompt_format: Its prompt format.
        lm: The language model; its weights are not used.
        control: The control; its weights are not used.
        reporter: Shows warnings, and held-out pairs that exceed the model's positions.

    Raises:
        ConfigError: A training sequence, or every held-out pair, exceeds the model's positions.
    """
    overlap = prompt_overlap(data.train, data.test)
    if overlap:
        reporter.warning(f"{len(overlap)} of {len(data.test)} held-out prompts are in the training data too")
    for stage in config.stages:
        warning = stage.few_steps_warning(len(data.train), config.batch.pairs)
        if warning:
            reporter.warning(warning)
    encoder = control.encoder(prompt_format, embedding_rows(lm))
    items = {
        name: make_items(name, encoder, data.train, data.levels, reporter=reporter)
        for name in dict.fromkeys(stage.format for stage in config.stages)
    }
    longest = max(len(sequence.ids) for of_format in items.values() for item in of_format for sequence in item)
    check_positions(lm, longest, "the longest training sequence")
    pairs = HeldOutPairs(encoder, data.test, data.levels)
    limit = num_positions(lm)
    num_dropped = 0 if limit is None else pairs.drop_longer(limit)
    if num_dropped:  # the filters of the data count the tokens of held-out prompts alone
        reporter.message(f"preference accuracy leaves out {num_dropped} pairs of more than {limit} tokens (the model)")
    if not pairs.longest:
        raise ConfigError(f"no held-out pair fits the model's {limit} positions")
    return RunInputs(items, pairs, longest)
