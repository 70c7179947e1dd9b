"""What a user says about the data: where it is, which splits, how long, how much."""

from __future__ import annotations

from typing import Self

from pydantic import Field, field_validator, model_validator

from meetlm.config.settings import Settings


class DataSettings(Settings):
    """Where preference pairs come from and which of them are used."""

    source: str = Field(
        description="Format of the rows: hh (Anthropic transcripts), summarize (OpenAI comparisons) or pairs "
        "(prompt/chosen/rejected as in TRL)."
    )
    path: str | None = Field(
        default=None,
        description="A hub name, a local folder in the hub's layout, or a single file (the training data). "
        "Not needed where train_file is given.",
    )
    subset: str | None = Field(
        default=None,
        description="Folder inside the data set. HH: harmless-base, helpful-base, helpful-online, "
        "helpful-rejection-sampled; summarize: comparisons.",
    )
    train_split: str = Field(default="train", description="Name of the split that is trained on.")
    eval_split: str = Field(
        default="test", description="Name of the split that is evaluated on; summarize calls it validation."
    )
    train_file: str | None = Field(
        default=None, description="Explicit training file; relative to path where path is a folder."
    )
    eval_file: str | None = Field(
        default=None, description="Explicit evaluation file; relative to path where path is a folder."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Columns of the data under other names than meetlm's, such as "
        "prompt=question,chosen=answer_good. prompt=instruction+input joins two columns by a blank line; system= "
        "leaves a column out.",
    )
    as_chat: bool = Field(
        default=False,
        description="Render text prompts with the model's chat template: HH transcripts as their turns, other text as "
        "one user message.",
    )
    max_length: int = Field(
        default=512,
        ge=1,
        description="In tokens. Training drops pairs whose prompt and longer response exceed it together; "
        "evaluation drops prompts that exceed it alone.",
    )
    limit_train: int | None = Field(
        default=None, ge=1, description="Train on the first this many usable rows; null for all."
    )
    limit_eval: int | None = Field(
        default=None, ge=1, description="Evaluate on the first this many usable rows; null for all."
    )
    holdout: int | None = Field(
        default=None,
        ge=1,
        description="Evaluate on the pairs of this many prompts of the training split, which are then not trained on, "
        "instead of the evaluation split: for choosing settings, or where there is one file.",
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
