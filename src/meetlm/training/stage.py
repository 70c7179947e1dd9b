"""Stage settings: what a stage trains, at which learning rates, and for how long."""

from __future__ import annotations

import math
import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from transformers import SchedulerType

import meetlm.objectives.dpo  # noqa: F401  registers itself
from meetlm.config.errors import ConfigError, nearest
from meetlm.config.settings import Settings
from meetlm.config.world import World
from meetlm.data.formats import FORMATS
from meetlm.objectives.base import OBJECTIVES, AnyObjectiveSettings
from meetlm.objectives.nll import NLLSettings

RESERVED = frozenset({"model", "controls", "completions", "evaluation"})
"""Names in a run's folder that a stage cannot have."""

MIN_STEPS = 50
"""A stage of fewer optimizer steps gives a warning: they change little at the usual learning rates."""


class StageSettings(Settings):
    """One stage: independent choices and their learning rates. The control belongs to the run."""

    name: str = Field(description="name of the stage's folder in the run")
    format: str = Field(
        "conditional",
        description="training sequences per pair: conditional (both replies, each at its level), chosen, pairwise "
        "(both at one level, compared) or chain (both in one sequence)",
    )
    objective: AnyObjectiveSettings = Field(NLLSettings(), description="loss: nll or dpo")
    train: tuple[Literal["control", "lm"], ...] = Field(
        min_length=1, description="what the optimizer trains: control, lm or both"
    )
    lr: float = Field(gt=0, description="learning rate of AdamW")
    control_lr: float | None = Field(
        None, gt=0, description="learning rate of the control if both are trained; null = lr"
    )
    epochs: float = Field(5, gt=0, description="epochs over the training pairs")
    min_steps: int = Field(
        0, ge=0, description="minimum number of optimizer steps; adds epochs where epochs gives fewer"
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in RESERVED:
            raise ValueError(
                f"a stage cannot have the name {name!r}: use letters, digits, '.', '_' and '-', and none of "
                f"{', '.join(sorted(RESERVED))}"
            )
        return name

    @field_validator("format")
    @classmethod
    def _check_format(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(f"unknown data format {name!r}{nearest(name, FORMATS)}")
        return name

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.control_lr is not None and set(self.train) != {"control", "lm"}:
            raise ValueError("control_lr requires train: [control, lm]; set lr instead")
        is_pairwise = OBJECTIVES[self.objective.kind].is_pairwise
        if is_pairwise and not FORMATS[self.format].is_pairwise:
            raise ValueError(
                f"objective {self.objective.kind!r} compares two replies to one prompt at one level; "
                f"set format: pairwise (it is {self.format!r})"
            )
        if not is_pairwise and FORMATS[self.format].is_pairwise:
            raise ValueError(
                f"format {self.format!r} puts both replies at the same level; objective {self.objective.kind!r} would "
                "train the rejected reply like the chosen one; set format: conditional or format: chosen"
            )
        return self

    def few_steps_warning(self, num_examples: int, pairs_per_step: int) -> str | None:
        """Return a warning if the stage would have fewer than ``MIN_STEPS`` steps."""
        steps = self.num_steps(num_examples, pairs_per_step)
        if steps >= MIN_STEPS:
            return None
        return (
            f"stage {self.name}: {steps} optimizer steps for {num_examples} examples; fewer than {MIN_STEPS} change "
            "little at the usual learning rates. Smaller batches (batch.pairs) or more epochs give more steps."
        )

    def num_steps(self, num_examples: int, pairs_per_step: int) -> int:
        """Return the number of optimizer steps for a training set of ``num_examples``."""
        return max(self.min_steps, math.ceil(self.epochs * math.ceil(num_examples / pairs_per_step)), 1)


class OptimSettings(Settings):
    """AdamW and its schedule, the same for every stage and method. The paper does not specify these settings."""

    lr: float | None = Field(None, gt=0, strict=True, description="overrides lr of every stage")
    epochs: float | None = Field(
        None,
        gt=0,
        strict=True,
        description="overrides epochs and min_steps of every stage (2x recipes train twice as many)",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay of the language model; the control has none")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises from 0")
    schedule: str = Field("linear", description="learning-rate schedule after the warm-up, a name from transformers")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping: maximum norm of the gradient")

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, name: str) -> str:
        names = [scheduler.value for scheduler in SchedulerType]
        if name not in names:
            raise ValueError(f"unknown scheduler {name!r}{nearest(name, names)}")
        return name


class BatchSettings(Settings):
    """Batch sizes, in pairs, so that every method trains on the same pairs in the same order."""

    pairs: int = Field(
        64, ge=1, description="pairs per optimizer step over all processes (64 pairs = 128 sequences, appendix A)"
    )
    micro_pairs: int = Field(
        8, ge=1, description="maximum number of pairs per forward pass of a process; same gradient"
    )
    save_steps: int | None = Field(None, ge=1, description="steps between checkpoints; null = one epoch")
    keep_checkpoints: bool = Field(
        False,
        description="keep the last checkpoint of every stage; false = a finished run has none of the stages that train "
        "the language model, whose optimizer takes twice the model's size",
    )
    log_steps: int = Field(1, ge=1, description="steps between lines of metrics.jsonl")
    report_to: tuple[str, ...] = Field(
        (), description="trackers that transformers.Trainer supports: wandb, tensorboard, …"
    )

    def of_process(self, world: World) -> BatchSettings:
        """Return the batch sizes of one process.

        Raises:
            ConfigError: The pairs of an optimizer step cannot be divided evenly among the processes.
        """
        pairs, rest = divmod(self.pairs, world.size)
        if rest:
            below, above = pairs * world.size, (pairs + 1) * world.size
            choice = f"{below} or {above}" if below else str(above)
            raise ConfigError(
                f"batch.pairs is {self.pairs}, the number of pairs per optimizer step over all processes, and "
                f"{world.size} processes cannot divide it evenly; set it to {choice}, or start fewer processes"
            )
        return self if world.size == 1 else self.model_copy(update={"pairs": pairs})

    @property
    def accumulation(self) -> int:
        """Forward passes per optimizer step."""
        return math.ceil(self.pairs / self.micro)

    @property
    def micro(self) -> int:
        """Pairs per forward pass: the largest divisor of ``pairs`` that ``micro_pairs`` allows."""
        return max(n for n in range(1, min(self.pairs, self.micro_pairs) + 1) if self.pairs % n == 0)
