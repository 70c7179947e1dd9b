"""Settings of the data: their location, the rows to use, and how to read them."""

from __future__ import annotations

import math
from typing import Self

from pydantic import Field, field_validator, model_validator

from meetlm.config.settings import Settings


def split_list(value: object) -> object:
    """Return the parts of text such as ``a,b``; return other values unchanged."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class LevelSettings(Settings):
    """How feedback becomes levels, for one attribute or all of them."""

    scheme: str = Field(
        "auto",
        description="Scheme of the levels: named, values (a level per distinct score), quantiles, thresholds or "
        "within-prompt (quantiles among the replies to a prompt); auto chooses by the data and prints its choice.",
    )
    count: int | None = Field(None, ge=2, description="Number of levels, for quantiles and within-prompt.")
    thresholds: tuple[float, ...] = Field(
        (),
        description="Scores between the levels, such as 2.5,3.5; a score equal to a threshold is in the upper level.",
    )
    names: tuple[str, ...] = Field(
        (), description="Names of the levels, worst first, such as bad,fair,good; by default the names in the data."
    )
    is_ordered: bool | None = Field(
        None,
        description="Whether named levels are a scale from worst to best; by default true if names is set, else false.",
    )

    @field_validator("thresholds", "names", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("thresholds")
    @classmethod
    def _check_thresholds(cls, thresholds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(map(math.isfinite, thresholds)) or list(thresholds) != sorted(set(thresholds)):
            raise ValueError("expected rising finite numbers, such as 2.5,3.5")
        return thresholds

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two levels have the name {name!r}")
            if not name or not set(name).isdisjoint("=,"):
                raise ValueError(f"a level cannot have the name {name!r}: names contain neither '=' nor ','")
        return names


class DataSettings(Settings):
    """Where the data are and which rows are used."""

    source: str = Field(
        description="Format of the rows: hh (Anthropic transcripts), summarize (OpenAI comparisons), pairs "
        "(prompt/chosen/rejected as in TRL) or feedback (prompt/completion with a label, score, level or attributes)."
    )
    path: str | None = Field(
        default=None,
        description="Hub name, folder or file of the training data. A folder or hub name holds the evaluation split "
        "too. Not needed with train_file.",
    )
    subset: str | None = Field(
        default=None,
        description="Folder inside the data set. HH: harmless-base, helpful-base, helpful-online, "
        "helpful-rejection-sampled; summarize: comparisons.",
    )
    train_split: str = Field(default="train", description="Split to train on.")
    eval_split: str = Field(default="test", description="Split to evaluate on; summarize calls it validation.")
    train_file: str | None = Field(default=None, description="Training file, relative to path if path is a folder.")
    eval_file: str | None = Field(default=None, description="Evaluation file, relative to path if path is a folder.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names of the columns to read, such as prompt=question,chosen=answer_good. "
        "prompt=instruction+input joins two columns by a blank line; system= ignores a column.",
    )
    attributes: tuple[str, ...] = Field(
        (),
        description="Columns with feedback on several attributes, such as helpfulness,verbosity; each attribute has "
        "its own levels.",
    )
    levels: LevelSettings = Field(LevelSettings(), description="How feedback becomes levels.")
    attribute_levels: dict[str, LevelSettings] = Field(
        default_factory=dict,
        description="Level settings of single attributes, by name, instead of those in data.levels.",
    )
    as_chat: bool = Field(
        default=False,
        description="Render text prompts with the model's chat template: HH transcripts as their turns, other text as "
        "one user message.",
    )
    max_length: int = Field(
        default=512,
        ge=1,
        description="Maximum number of tokens. Training drops pairs whose prompt and longer reply exceed it together; "
        "evaluation drops prompts that exceed it alone.",
    )
    limit_train: int | None = Field(default=None, ge=1, description="Train on the first N usable rows; null = all.")
    limit_eval: int | None = Field(default=None, ge=1, description="Evaluate on the first N usable rows; null = all.")
    holdout: int | None = Field(
        default=None,
        ge=1,
        description="Hold out the pairs of N prompts of the training split and evaluate on them, instead of on the "
        "evaluation split.",
    )

    @field_validator("attributes", mode="before")
    @classmethod
    def _split_attributes(cls, value: object) -> object:
        return split_list(value)

    @field_validator("columns", mode="before")
    @classmethod
    def _parse_columns(cls, value: object) -> object:
        if not isinstance(value, str):
            return {} if value is None else value
        pairs = [part.partition("=") for part in value.split(",")]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            raise ValueError(f"expected NAME=COLUMN,NAME=COLUMN, such as prompt=question, not {value!r}")
        return {name.strip(): column.strip() for name, _, column in pairs}

    @model_validator(mode="after")
    def _some_place(self) -> Self:
        if self.path is None and self.train_file is None and self.eval_file is None:
            raise ValueError("no data: set data.path (hub name, folder or file), or data.train_file and data.eval_file")
        if self.holdout is not None and self.eval_file is not None:
            raise ValueError("holdout and eval_file both select the held-out rows; set only one of them")
        return self
