"""Time and activation memory of a stage, measured on a few real forward and backward passes.

Nothing is trained: the learning rate is 0.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, PreTrainedModel

from meetlm.config.reporter import Reporter
from meetlm.controls.build import build_control
from meetlm.data.batch import Layout, size_of, split_by_tokens
from meetlm.data.encoding import Encoded
from meetlm.data.formats import Item
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import checkpoint_activations, device_of, load_lm, load_skeleton
from meetlm.policy.policy import SCORED_TOKENS, Policy, to_device
from meetlm.recipes.config import RunConfig
from meetlm.run.plan_inputs import PlanInputs
from meetlm.run.planned_batches import ForwardPass, StageBatches
from meetlm.training.loop import Collator, adamw
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import StageSettings

TIMED_SHARES = (0.25, 0.5, 0.75)
"""Quantiles, by number of positions, of the forward passes that are timed."""
SCORED_BATCHES = 3


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Estimated wall time in seconds, from the mean, the fastest and the slowest of the timed passes."""

    mean: float
    low: float
    high: float

    def __add__(self, other: TimeEstimate) -> TimeEstimate:
        return TimeEstimate(self.mean + other.mean, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Cost:
    """Measured cost of a stage or of scoring.

    Attributes:
        per_position: Seconds per position of each timed pass.
        per_step: Seconds of the optimizer per step; 0 for scoring.
        activations: Peak memory of the largest pass above weights, gradients and optimizer states, in bytes.
    """

    per_position: tuple[float, ...]
    per_step: float = 0.0
    activations: float = 0.0

    def time(self, positions: int, steps: int = 0) -> TimeEstimate:
        """Return the time of a number of positions and optimizer steps."""
        rates = (sum(self.per_position) / len(self.per_position), min(self.per_position), max(self.per_position))
        return TimeEstimate(*(rate * positions + self.per_step * steps for rate in rates))

    def extrapolate(self, deeper: Cost, factor: float) -> Cost:
        """Return this cost plus ``factor`` times the difference to that of a deeper model."""

        def extend(cost: float, deeper_cost: float) -> float:
            return max(cost, cost + factor * (deeper_cost - cost))

        return Cost(
            tuple(map(extend, self.per_position, deeper.per_position)),
            extend(self.per_step, deeper.per_step),
            extend(self.activations, deeper.activations),
        )


@dataclass(frozen=True, slots=True)
class RunCost:
    """Measured cost of a run.

    Attributes:
        layout: Layout of the batches, as the model with its weights decides it.
        starts_as_identity: Whether the untrained control leaves the base model's outputs as they are.
        stages: Cost of each stage.
        scoring: Cost of scoring.
    """

    layout: Layout
    starts_as_identity: bool
    stages: list[Cost]
    scoring: Cost

    def scoring_time(self, sequences: Sequence[Encoded]) -> TimeEstimate:
        """Return the time of scoring ``sequences``."""
        return self.scoring.time(scored_positions(self.layout, sequences))


def measure_run(inputs: PlanInputs, depths: Sequence[int], reporter: Reporter) -> RunCost:
    """Return the cost of a run.

    Args:
        inputs: Inputs of the plan.
        depths: Numbers of layers to measure: that of the whole model, or two smaller numbers for linear extrapolation.
        reporter: Receives messages.
    """
    config, layers = inputs.config, inputs.num_layers
    costs = []
    for depth in depths:
        reporter.message(f"measuring {config.model.name}: {depth} of {layers} layers")
        lm = load_lm(config.model)[0] if depth == layers else _random_model(config, depth)
        control = build_control(config.control, inputs.control.levels, lm, inputs.tokenize, config.seed)
        policy = Policy(lm, control, inputs.encoded.longest)
        layout, is_identity = policy.layout, control.is_identity()
        stages = [
            measure_stage(policy, inputs.encoded.items[stage.format], batches, stage, config)
            for stage, batches in zip(config.stages, inputs.batches(layout), strict=True)
        ]
        costs.append([*stages, measure_scoring(policy, inputs.encoded.pairs.uncontrolled)])
        del lm, policy, control
    factor = (layers - depths[0]) / (depths[-1] - depths[0]) if len(depths) > 1 else 0.0
    *stages, scoring = [cost.extrapolate(deeper, factor) for cost, deeper in zip(costs[0], costs[-1], strict=True)]
    return RunCost(layout, is_identity, stages, scoring)


def _random_model(config: RunConfig, depth: int) -> PreTrainedModel:
    """Return the run's model with fewer layers and random weights."""
    shape = load_skeleton(config.model.name).config
    text = shape.get_text_config()
    layers = text.num_hidden_layers
    for name, value in vars(text).items():  # such as the kind of each layer
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:depth])
    text.num_hidden_layers = depth
    lm: PreTrainedModel = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)  # type: ignore[no-untyped-call]
    lm.train(False)
    if config.model.gradient_checkpointing:
        checkpoint_activations(lm)
    nn.Module.to(lm, device_of(config.model))
    return lm


def measure_stage(
    policy: Policy, items: Sequence[Item], batches: StageBatches, stage: StageSettings, config: RunConfig
) -> Cost:
    """Return the cost of a stage.

    Args:
        policy: With its weights.
        items: Sequences of each pair.
        batches: Forward passes of the stage; the largest one measures memory, others time.
        stage: Settings of the stage.
        config: Configuration of the run.
    """
    set_trainable(policy, stage)
    policy.train()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = adamw(policy, stage, config.optim)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    kind = OBJECTIVES[stage.objective.kind]
    objective = kind.build(stage.objective)
    collate = Collator(policy.layout, is_pairwise=kind.is_pairwise, share=policy.shares_prompts)

    def forward_backward(chosen: ForwardPass) -> None:
        batch = collate([(items[index], torch.zeros(2)) for index in chosen.items])
        bf16 = policy.device.type == "cuda" and torch.cuda.is_bf16_supported()
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=bf16):
            sums = policy(to_device(batch["blocks"], policy.device), batch["num_completions"]).sums()
        reference = batch["reference"].to(sums) if "reference" in batch else None
        loss = objective(sums, reference).total / len(batch["labels"])
        loss.backward()  # type: ignore[no-untyped-call]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(trained, config.optim.max_grad_norm)
        optimizer.step()

    accumulates = config.batch.accumulation > 1
    for parameter in trained if accumulates else ():  # of the first pass of the step
        parameter.grad = torch.zeros_like(parameter)
    with PeakMemory() as memory:
        forward_backward(batches.by_positions(1))
    gradients = 0 if accumulates else sum(parameter.nbytes for parameter in trained)
    activations = max(0, memory.peak - gradients)
    per_position = []
    for share in TIMED_SHARES:
        timed = batches.by_positions(share)
        per_position.append(_seconds(partial(forward_backward, timed)) / timed.size.positions)
    step()  # creates the optimizer states
    per_step = _seconds(step)
    policy.zero_grad(set_to_none=True)
    policy.eval()
    return Cost(tuple(per_position), per_step, activations)


def measure_scoring(policy: Policy, sequences: Sequence[Encoded]) -> Cost:
    """Return the cost of scoring, for the reference of a pairwise objective and for preference accuracy."""
    size = max(1, SCORED_TOKENS * len(sequences) // sum(len(sequence.ids) for sequence in sequences))
    per_position = []
    for number in range(SCORED_BATCHES + 1):
        chosen = [sequences[(number * size + offset) % len(sequences)] for offset in range(size)]
        per_position.append(_seconds(partial(policy.score, chosen)) / scored_positions(policy.layout, chosen))
    return Cost(tuple(per_position[1:]))


def scored_positions(layout: Layout, sequences: Sequence[Encoded]) -> int:
    """Return the positions that :meth:`Policy.score` computes for ``sequences``."""
    share = layout == "packed"
    groups = ([sequences[index] for index in group] for group in split_by_tokens(sequences, SCORED_TOKENS, share=share))
    return sum(size_of(group, layout, share=share).positions for group in groups)


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operators create while it is active.

    Attributes:
        peak: Largest number of bytes at a time, without tensors that existed before.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and count the storages that it creates."""
        result = func(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in inputs and storage._cdata not in self._storages:
                self._storages.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes()).atexit = False
        return result

    def _freed(self, storage: int, size: int) -> None:
        self._storages.discard(storage)
        self.live -= size


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _seconds(run: Callable[[], object]) -> float:
    started = perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - started
