"""Settings of the data: where they are, which rows are used, and how they are read."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from meetlm.config.settings import Settings


class DataSettings(Settings):
    """Where preference pairs are and which of them are used."""

    source: str = Field(
        description="Format of the rows: hh (Anthropic transcripts), summarize (OpenAI comparisons) or pairs "
        "(prompt/chosen/rejected as in TRL)."
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
        "prompt=instruction+input joins two columns by a blank line; system= leaves a column out.",
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
            raise ValueError("no data: set path (hub name, folder or file), or train_file and eval_file")
        return self
