"""What training takes in memory, from a dry run of its forward and backward passes. Needs shapes, no weights.

Forward, backward, gradients and AdamW's two moments are those of a run, operator by operator (``dry_run``); the
largest number of bytes that live at once is the figure, not a sum of guesses. bf16 stands for what CUDA does (autocast
over f32 weights), f32 for the CPU.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from meetlm.controls.base import Control
from meetlm.data.batch import Batch, Layout
from meetlm.diagnostics.allocator import BACKWARD, DONE, FORWARD
from meetlm.diagnostics.dry_run import CudaAutocast, DryRun
from meetlm.objectives.base import Objective
from meetlm.policy.loading import embedding_rows
from meetlm.policy.policy import Policy

MOMENTS = 2
"""AdamW keeps two running means for each number that it trains."""


@dataclass(frozen=True, slots=True)
class States:
    """What stays from step to step, in bytes.

    Attributes:
        weights: Parameters and buffers.
        gradients: Of what is trained.
        moments: AdamW's.
    """

    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.moments


@dataclass(frozen=True, slots=True)
class PassPeak:
    """The most that lives at a time in one forward and backward pass, in bytes.

    Attributes:
        above_weights: Above weights (and the moments, once there are some): activations, and gradients as they come.
        activations: The same without the gradients that the pass found, if it found any.
        sharded: ``activations`` without copies of weights in another type: what sharding the states leaves on each GPU.
    """

    above_weights: int
    activations: int
    sharded: int


class Rehearsal:
    """Runs passes of one stage without data, as its optimizer steps would follow each other.

    Args:
        lm: Its shapes, such as ``load_skeleton`` gives; hollowed out here.
        control: Built for ``lm``; hollowed out here.
        train: What is trained, of ``lm`` and ``control``.
        objective: Of the stage.
        layout: Of the batches to come.
        bf16: As on CUDA, rather than f32.

    Attributes:
        states: What stays.
        slots: For each level, the ids of its control slot.
        num_words: Rows of the embedding table.
        events: Every block taken and given back so far, in order, for :func:`~meetlm.diagnostics.allocator.held`.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        control: Control,
        train: tuple[str, ...],
        objective: Objective,
        layout: Layout,
        *,
        bf16: bool,
    ) -> None:
        self._run, self._objective, self._bf16 = DryRun(), objective, bf16
        self.slots, self.num_words = control.slots, embedding_rows(lm)
        lm.float()  # type: ignore[no-untyped-call]
        self._run.hollow(nn.ModuleList([lm, control]))
        self._policy = Policy(lm, control, layout=layout)
        lm.requires_grad_("lm" in train)
        control.requires_grad_("control" in train)
        self._policy.train()
        self._trained = [p for p in self._policy.parameters() if p.requires_grad]
        gradients = sum(p.numel() * p.element_size() for p in self._trained)
        self.states = States(self._run.live, gradients, MOMENTS * gradients)
        self._moments: list[Tensor] = []

    @property
    def stores_probabilities(self) -> bool:
        """Whether a trained head keeps probabilities for backward, as the policy has it."""
        return self._policy.stores_probabilities

    @property
    def events(self) -> list[tuple[int, int]]:
        """Every block taken and given back so far."""
        return self._run.events

    def forward_backward(self, batch: Batch) -> PassPeak:
        """Return the peak of a pass over ``batch``; its gradients stay, or are added to those that are there."""
        run = self._run
        found = sum(p.numel() * p.element_size() for p in self._trained if p.grad is not None)
        base = self.states.weights + sum(m.numel() * m.element_size() for m in self._moments)
        run.forget_peak()
        run.note(FORWARD)
        with run, CudaAutocast() if self._bf16 else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                logps = self._policy(batch["blocks"], batch["num_completions"])
            sums = logps.sums()
            loss = self._objective(sums, batch.get("reference")).total / len(batch["labels"])
            del logps, sums
            run.note(BACKWARD)
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
        run.note(DONE)
        return PassPeak(run.peak - base, run.peak - base - found, run.peak_without_copies - base - found)

    def step(self) -> None:
        """Let the optimizer step: its moments come with the first one, and gradients go."""
        with self._run:
            if not self._moments:
                self._moments = [torch.zeros_like(p) for p in self._trained for _ in range(MOMENTS)]
        for parameter in self._trained:
            parameter.grad = None
