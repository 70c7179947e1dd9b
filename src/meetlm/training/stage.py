"""Stage settings: what one pass over the data trains, at which rates, for how long. Knows no method by name."""

from __future__ import annotations

import math
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from transformers import SchedulerType

import meetlm.objectives.dpo  # noqa: F401  registers itself
from meetlm.config.errors import nearest
from meetlm.config.settings import Settings
from meetlm.data.formats import FORMATS
from meetlm.objectives.base import OBJECTIVES, AnyObjectiveSettings
from meetlm.objectives.nll import NLLSettings

RESERVED = frozenset({"model", "controls", "completions", "evaluation"})
"""Names in a run's folder that are not stages."""

MIN_STEPS = 50
"""A stage of fewer optimizer steps than this gives a warning: AdamW at these rates has hardly moved by then."""


class StageSettings(Settings):
    """One stage: independent choices (the control is the run's) and their rates."""

    name: str = Field(description="name of the stage's folder in the run")
    format: str = Field(
        "conditional",
        description="what sequences a pair gives: conditional (both replies, each at its level), chosen, pairwise "
        "(both at one level, compared) or chain (both in one sequence)",
    )
    objective: AnyObjectiveSettings = Field(NLLSettings(), description="what is made of the log-probs: nll or dpo")
    train: tuple[Literal["control", "lm"], ...] = Field(min_length=1, description="what the optimizer moves")
    lr: float = Field(gt=0, description="AdamW's rate, of everything trained")
    control_lr: float | None = Field(None, gt=0, description="another rate for the control, where both are trained")
    epochs: float = Field(5, gt=0, allow_inf_nan=False, description="passes over the training pairs")
    min_steps: int = Field(0, ge=0, description="more epochs than asked for where they give fewer steps than this")

    @field_validator("name")
    @classmethod
    def _a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in RESERVED:
            raise ValueError(f"a stage called {name!r} cannot have a folder of its own in the run")
        return name

    @field_validator("format")
    @classmethod
    def _a_format(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(f"unknown data format {name!r}{nearest(name, FORMATS)}")
        return name

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.control_lr is not None and set(self.train) != {"control", "lm"}:
            raise ValueError("control_lr is for a stage that trains control and lm; this one's rate is lr")
        is_pairwise = OBJECTIVES[self.objective.kind].is_pairwise
        if is_pairwise and not FORMATS[self.format].compares:
            raise ValueError(
                f"objective {self.objective.kind!r} compares two replies to one prompt, and the format "
                f"{self.format!r} does not give it both: format: pairwise"
            )
        if not is_pairwise and FORMATS[self.format].compares:
            raise ValueError(
                f"format {self.format!r} puts the rejected reply beside the chosen one at the same level, and the "
                f"objective {self.objective.kind!r} would learn both alike: format: conditional, or chosen"
            )
        return self

    def few_steps_warning(self, num_pairs: int, pairs_per_step: int) -> str | None:
        """Return a warning where the stage would have under ``MIN_STEPS`` steps."""
        steps = self.num_steps(num_pairs, pairs_per_step)
        if steps >= MIN_STEPS:
            return None
        return (
            f"stage {self.name}: {steps} optimizer steps for {num_pairs} pairs; fewer than {MIN_STEPS} change little "
            "at the usual learning rates. Smaller batches (batch.pairs) or more epochs give more steps."
        )

    def num_steps(self, num_pairs: int, pairs_per_step: int) -> int:
        """Return the number of optimizer steps for a training set of ``num_pairs``."""
        return max(self.min_steps, math.ceil(self.epochs * math.ceil(num_pairs / pairs_per_step)), 1)


class OptimSettings(Settings):
    """AdamW and its schedule: what the paper leaves open, the same for every stage and method."""

    lr: float | None = Field(
        None, gt=0, allow_inf_nan=False, strict=True, description="learning rate of every stage, instead of its lr"
    )
    epochs: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        strict=True,
        description="epochs of every stage, instead of its epochs and min_steps (twice as many in 2x recipes)",
    )
    weight_decay: float = Field(0.0, ge=0, description="on the language model; the control has none")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    schedule: str = Field("linear", description="a transformers scheduler: the rate's way down after the warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="clipping of the gradient's norm")

    @field_validator("schedule")
    @classmethod
    def _a_scheduler(cls, name: str) -> str:
        known = [one.value for one in SchedulerType]
        if name not in known:
            raise ValueError(f"unknown scheduler {name!r}{nearest(name, known)}")
        return name


class BatchSettings(Settings):
    """How many pairs make an optimizer step; the same pairs in the same order for every method."""

    pairs: int = Field(64, ge=1, description="pairs in one optimizer step (64 pairs = 128 sequences, appendix A)")
    micro_pairs: int = Field(8, ge=1, description="most pairs in one forward pass; the gradient is the same")
    save_steps: int | None = Field(None, ge=1, description="checkpoint every so many steps; by default every epoch")
    log_steps: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    report_to: tuple[str, ...] = Field(
        (), description="trackers that transformers.Trainer knows: wandb, tensorboard, …"
    )

    @property
    def accumulation(self) -> int:
        """Forward passes in one optimizer step."""
        return math.ceil(self.pairs / self.micro)

    @property
    def micro(self) -> int:
        """Pairs in one forward pass: the largest divisor of ``pairs`` that ``micro_pairs`` allows."""
        return max(n for n in range(1, min(self.pairs, self.micro_pairs) + 1) if self.pairs % n == 0)
