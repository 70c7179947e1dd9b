"""What a run will take, said before it: steps, tokens, time, memory, GPUs. Nothing of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from meetlm.controls.build import build_control
from meetlm.data.batch import Layout
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.formats import FORMATS, Item
from meetlm.diagnostics.gpus import GIB
from meetlm.diagnostics.preference import HeldOut
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import (
    check_positions,
    device_of,
    embedding_rows,
    load_lm,
    load_skeleton,
    load_tokenizer,
    num_positions,
)
from meetlm.policy.packing import attention_failure_reason
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig
from meetlm.run.calibrate import Seconds, calibrate, calibrate_scoring, sample, scored_positions
from meetlm.run.plan_memory import CpuMemory, GpuMemory, StageRehearsal
from meetlm.run.plan_shapes import SHAPES, Shape, shape_memory
from meetlm.run.planned_batches import StageBatches, StageCounts
from meetlm.run.prepared import pinned_format, prepare_data
from meetlm.training.stage import StageSettings

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What a stage will do.

    Attributes:
        name: The stage's.
        train: What is trained.
        counts: What it reads.
        passes_a_step: Forward and backward passes in an optimizer step.
        seconds: Of its steps, without checkpoints; ``None`` where nothing was timed.
        reference: Of scoring its pairs under the reference before; ``None`` where there is none, or nothing was timed.
        memory: Where the run's device is.
    """

    name: str
    train: tuple[str, ...]
    counts: StageCounts
    passes_a_step: int
    seconds: Seconds | None
    reference: Seconds | None
    memory: CpuMemory | GpuMemory


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """What GPUs a model would need for the most demanding stage, by memory alone.

    Attributes:
        model: For people.
        stage: That stage's name.
        memory: What it takes.
        gpus: By size in GiB, the least number of GPUs; ``None`` where no number is enough.
    """

    model: str
    stage: str
    memory: GpuMemory
    gpus: dict[int, int | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take.

    Attributes:
        config: Of the run.
        device: Its device.
        layout: Of its batches.
        checked: Whether that was checked on the model; without its weights it is what the architecture promises.
        stages: In order.
        measured_pairs: Held-out pairs, measured before training and after each stage.
        measuring: Of all these measurements together; ``None`` where nothing was timed.
        gpus: Of this run, then of models of other sizes in the paper's setting.
    """

    config: RunConfig
    device: str
    layout: Layout
    checked: bool
    stages: tuple[StagePlan, ...]
    measured_pairs: int
    measuring: Seconds | None
    gpus: tuple[GpuPlan, ...]

    @property
    def seconds(self) -> Seconds | None:
        """Wall time of the whole run, its loading and writing not counted; ``None`` where nothing was timed."""
        if self.measuring is None:
            return None
        parts = [time for stage in self.stages for time in (stage.seconds, stage.reference) if time is not None]
        return sum(parts, start=self.measuring)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON types; times in seconds, memory in bytes."""
        return {
            "recipe": self.config.recipe,
            "preset": self.config.preset,
            "model": self.config.model.name,
            "device": self.device,
            "layout": self.layout,
            "layout_checked": self.checked,
            "stages": [{**asdict(one), "memory": _memory(one.memory)} for one in self.stages],
            "measured_pairs": self.measured_pairs,
            "measuring": self.measuring and asdict(self.measuring),
            "seconds": self.seconds and asdict(self.seconds),
            "gpus": [{**asdict(one), "memory": _memory(one.memory)} for one in self.gpus],
        }


def make_plan(
    config: RunConfig,
    *,
    gpus: Sequence[int] = (80,),
    timed: bool = True,
    shapes: Sequence[Shape] = SHAPES,
    say: Say = lambda text: None,
) -> Plan:
    """Return what a run of ``config`` will take.

    Args:
        config: Resolved.
        gpus: Sizes of GPUs to plan for, in GiB.
        timed: Load the model and time a few passes of each stage; otherwise only its configuration is read.
        shapes: Models of other sizes to plan for.
        say: Is told what is being done.

    Raises:
        MeetError: Data, model or configuration cannot be used.
    """
    device = device_of(config.model)
    tokenizer = load_tokenizer(config.model.name)
    prompt_format = pinned_format(config, tokenizer)
    data = prepare_data(config.data, prompt_format)
    for line in data.lines():
        say(line)
    say(f"loading {config.model.name}")
    lm = load_lm(config.model)[0] if timed else load_skeleton(config.model.name)
    control = build_control(config.control, lm, prompt_format.words, config.seed)
    encoder = Encoder(prompt_format, control.slots, config.control.placement, embedding_rows(lm))
    items = {
        name: [FORMATS[name].item(encoder, example) for example in data.train]
        for name in dict.fromkeys(stage.format for stage in config.stages)
    }
    longest = max(len(one.ids) for made in items.values() for item in made for one in item)
    check_positions(lm, longest, "the longest training sequence")
    pairs = HeldOut(encoder, data.test)
    most = num_positions(lm)
    if most is not None:
        pairs.drop_longer(most)
    policy = Policy(lm, control, longest) if timed else Policy(lm, control, layout=_promised(lm))
    batches = [
        StageBatches(items[stage.format], stage, config.batch, config.seed, policy.layout, share=policy.shares_prompts)
        for stage in config.stages
    ]
    clock = _Clock(policy, config, items, pairs, say) if timed else None
    times = [clock.of_stage(stage, one) for stage, one in zip(config.stages, batches, strict=True)] if clock else []
    measuring = clock.measuring() if clock else None
    layout, share = policy.layout, policy.shares_prompts
    del lm, control, policy, clock  # what comes now needs shapes alone
    stages, needs = [], []
    for number, (stage, one) in enumerate(zip(config.stages, batches, strict=True)):
        say(f"{stage.name}: a dry run of its largest batch")
        rehearsal = StageRehearsal(
            lambda: load_skeleton(config.model.name),
            config,
            stage,
            items[stage.format],
            one,
            prompt_format.words,
            layout,
            share=share,
        )
        needs.append((stage, rehearsal.on_gpu()))
        stages.append(
            StagePlan(
                name=stage.name,
                train=stage.train,
                counts=one.counts(),
                passes_a_step=config.batch.accumulation,
                seconds=times[number][0] if times else None,
                reference=times[number][1] if times else None,
                memory=needs[-1][1] if device.type == "cuda" else rehearsal.on_cpu(),
            )
        )
    plans = [_on_gpus(config.model.name, needs, gpus)]
    for shape in shapes:
        say(f"{shape.name}: a dry run of its shape")
        distinct = {(stage.train, stage.format, stage.objective.kind): stage for stage in config.stages}
        found = [(stage, shape_memory(shape, config, stage, prompt_format.words)) for stage in distinct.values()]
        plans.append(_on_gpus(shape.name, found, gpus))
    return Plan(
        config=config,
        device=device.type,
        layout=layout,
        checked=timed,
        stages=tuple(stages),
        measured_pairs=len(pairs.bare) // 2,
        measuring=measuring,
        gpus=tuple(plans),
    )


class _Clock:
    """Times what a run does with a policy, which it moves.

    Args:
        policy: Real.
        config: Of the run.
        items: What each format makes of each pair.
        pairs: Held out.
        say: Is told what is being done.
    """

    def __init__(
        self, policy: Policy, config: RunConfig, items: dict[str, list[Item]], pairs: HeldOut, say: Say
    ) -> None:
        self._policy, self._config, self._items, self._pairs, self._say = policy, config, items, pairs, say
        self._silent = policy.control.is_identity()  # before it is moved
        say("timing the scoring of held-out pairs")
        self._scoring = calibrate_scoring(policy, pairs.bare)

    def of_stage(self, stage: StageSettings, batches: StageBatches) -> tuple[Seconds, Seconds | None]:
        """Return the time of a stage's steps, and of its reference where it has one."""
        self._say(f"{stage.name}: timing a few passes")
        made, config = self._items[stage.format], self._config
        chosen = sample(batches, made, config.batch, self._policy.device)
        rate = calibrate(self._policy, chosen, stage, config.optim, config.seed)
        counts = batches.counts()
        seconds = rate.seconds(counts.positions, counts.steps)
        if not OBJECTIVES[stage.objective.kind].is_pairwise:
            return seconds, None
        return seconds, self._score([one for item in made for one in item])

    def measuring(self) -> Seconds:
        """Return the time of measuring the held-out pairs: untouched, before training and after each stage."""
        levels = [self._score(rows) for rows in self._pairs.by_level.values()]
        times = len(self._config.stages) + (not self._silent)  # before training a silent one has the untouched scores
        return sum((one for one in levels for _ in range(times)), start=self._score(self._pairs.bare))

    def _score(self, sequences: Sequence[Encoded]) -> Seconds:
        return self._scoring.seconds(scored_positions(self._policy, sequences))


def _promised(lm: PreTrainedModel) -> Layout:
    """Return the layout of a model without weights, which cannot be checked, as its class promises it."""
    return "packed" if attention_failure_reason(lm) is None else "padded"


def _on_gpus(model: str, needs: Sequence[tuple[StageSettings, GpuMemory]], sizes: Sequence[int]) -> GpuPlan:
    """Return the plan of the stage that takes most."""
    stage, memory = max(needs, key=lambda one: one[1].peak)
    return GpuPlan(model, stage.name, memory, {size: memory.gpus(size * GIB) for size in sizes})


def _memory(memory: CpuMemory | GpuMemory) -> dict[str, Any]:
    return {**asdict(memory), "peak": memory.peak}
