"""What the processes of a group run; each function also runs in the single process that they are compared with."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from meetlm.config.errors import MeetError
from meetlm.config.world import World
from meetlm.data.encoding import Encoded
from meetlm.data.example import Prompt
from meetlm.data.formats import FORMATS, Item
from meetlm.data.settings import DataSettings
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import RewardSettings
from meetlm.generation.settings import Sampling
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import embedding_rows
from meetlm.policy.policy import Policy
from meetlm.policy.reference import reference_logps
from meetlm.run.completions import write_completions
from meetlm.training.callbacks import MetricsWriter
from meetlm.training.loop import StageTrainer, release
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings
from reporters import RecordingReporter
from tiny import LENGTHS, encoder_of, pairs, sequences, tiny_policy

NUM_PROMPTS = 19
"""Number of prompts that :func:`completions` completes."""


@dataclass(frozen=True)
class Training:
    """What a job trains: a tiny policy in one stage.

    Attributes:
        count: Number of pairs.
        pairs: Pairs per optimizer step.
        micro: Pairs per forward pass of a process.
        single: Whether each item has one reply, so that a forward pass of one item has one level.
        without_slot: Items whose sequences have no control slot and no level weights.
        policy: Further arguments of ``tiny_policy``.
        stage: Further settings of the stage.
    """

    architecture: str = "llama"
    kind: str = "lora"
    train: tuple[str, ...] = ("control",)
    count: int = 12
    pairs: int = 4
    micro: int = 1
    steps: int = 4
    seed: int = 0
    dtype: torch.dtype = torch.float64
    single: bool = False
    without_slot: tuple[int, ...] = ()
    save_steps: int | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    stage: dict[str, Any] = field(default_factory=dict)

    def make_policy(self) -> Policy:
        """Return the untrained policy."""
        arguments = {"move": 0.05, "dtype": self.dtype, **self.policy}
        return tiny_policy(self.architecture, self.kind, **arguments)

    def stage_settings(self) -> StageSettings:
        """Return the settings of the stage."""
        return StageSettings(
            **{"name": "stage", "train": self.train, "lr": 1e-3, "epochs": 1e-6, "min_steps": self.steps, **self.stage}
        )

    def items(self, policy: Policy) -> list[Item]:
        """Return the training items."""
        encoder, form = encoder_of(policy), FORMATS[self.stage_settings().format]
        items = [form.item(encoder, example) for example in pairs(self.count)]
        if self.single:
            items = [(sequence,) for item in items for sequence in item]
        virtual = embedding_rows(policy.lm)
        for index in self.without_slot:
            items[index] = tuple(_without_slot(sequence, virtual) for sequence in items[index])
        return items

    @property
    def batch(self) -> BatchSettings:
        """Batch sizes."""
        return BatchSettings(pairs=self.pairs, micro_pairs=self.micro, save_steps=self.save_steps)


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        metrics: Lines of ``metrics.jsonl``.
        gradients: Gradients of each step before clipping.
        weights: Parameters afterwards.
        passes: Level of the first token, and number of trained tokens, of each sequence of each forward pass.
        reference: Log-probs under the reference.
        is_released: Whether the wrapped model is gone after training.
    """

    metrics: list[dict[str, float]]
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]
    passes: list[list[tuple[tuple[float, ...], int]]]
    reference: Tensor | None
    is_released: bool


def _without_slot(sequence: Encoded, virtual: int) -> Encoded:
    (span,) = sequence.spans
    ids = [token for token in sequence.ids if token < virtual]
    return Encoded.of_one(ids, span.start - (len(sequence.ids) - len(ids)), (0.0,) * len(span.weights))


class _Recorder(TrainerCallback):  # type: ignore[misc]
    def __init__(self, policy: Policy, stop_after: int | None) -> None:
        self.policy, self.gradients, self._stop_after = policy, list[dict[str, Tensor]](), stop_after

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parameters = self.policy.named_parameters()
        self.gradients.append({name: p.grad.detach().clone() for name, p in parameters if p.grad is not None})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self._stop_after:
            control.should_training_stop = True


class _Trainer(StageTrainer):
    passes: list[list[tuple[tuple[float, ...], int]]]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        counts = torch.cat([block["completion"] for block in inputs["blocks"]]).bincount().tolist()
        rows = zip(map(tuple, inputs["weights"].tolist()), counts, strict=True)
        self.passes.append(list(rows) if len(inputs["labels"]) else [])
        return super().compute_loss(model, inputs, *args, **kwargs)


def train(
    training: Training, folder: Path, resume: Path | None = None, stop_after: int | None = None, policy: Any = None
) -> Trained:
    """Train and return what has happened."""
    torch.manual_seed(0)
    world, policy = World.current(), policy or training.make_policy()
    settings = training.stage_settings()
    set_trainable(policy, settings)
    items = training.items(policy)
    reference = None
    if OBJECTIVES[settings.objective.kind].is_pairwise:
        reference = policy.score([sequence for item in items for sequence in item])[0].view(len(items), -1)
    folder.mkdir(parents=True, exist_ok=True)
    recorder = _Recorder(policy, stop_after)
    callbacks = [recorder, *([MetricsWriter(folder / "metrics.jsonl")] if world.is_main else [])]
    optim = OptimSettings(max_grad_norm=1e9)
    trainer = _Trainer(policy, items, settings, optim, training.batch, folder, training.seed, callbacks, reference)
    trainer.passes = []
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    wrapper = weakref.ref(trainer.model_wrapped)
    release(trainer)
    gc.collect()
    lines = (folder / "metrics.jsonl").read_text().splitlines() if world.is_main else []
    return Trained(
        metrics=[json.loads(line) for line in lines],
        gradients=recorder.gradients,
        weights={name: p.detach().clone() for name, p in policy.named_parameters()},
        passes=trainer.passes,
        reference=reference,
        is_released=wrapper() is None or world.size == 1,
    )


def train_stages(stages: list[Training], folder: Path) -> list[Trained]:
    """Train one policy in several stages."""
    policy = stages[0].make_policy()
    return [train(stage, folder / str(number), policy=policy) for number, stage in enumerate(stages)]


def scores(layout: str) -> tuple[Tensor, int]:
    """Return the scores of replies of different lengths, and the number of forward passes of this process."""
    policy = tiny_policy("llama", "lora", layout=layout)
    passes = _count_passes(policy)
    values, _ = policy.score(sequences(policy, LENGTHS * 4), max_tokens=40)
    return values, len(passes)


def reference(folder: Path) -> tuple[Tensor, int]:
    """Return log-probs under the reference, and the number of forward passes of this process."""
    policy = tiny_policy("llama", "lora")
    passes = _count_passes(policy)
    return reference_logps(policy, sequences(policy, LENGTHS * 200), folder), len(passes)


def _count_passes(policy: Policy) -> list[None]:
    passes: list[None] = []
    policy.register_forward_pre_hook(lambda *_: passes.append(None))
    return passes


class _Stopped(Exception):
    pass


def completions(run: Path, out: Path, stop_after: int | None = None) -> str:
    """Return what ``meet generate`` writes; nothing if it is interrupted after ``stop_after`` completions."""
    counts: list[int] = []

    def stop(count: int) -> None:
        counts.append(count)
        if sum(counts) == stop_after:
            raise _Stopped

    prompts = out.with_name("prompts.jsonl")
    if World.current().is_main:
        lines = [{"prompt": f"\n\nHuman: What is {'good ' * (n % 5)}{n}?\n\nAssistant:"} for n in range(NUM_PROMPTS)]
        prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    World.current().wait()
    sampling = Sampling(max_new_tokens=8, temperature=1.0)
    data = DataSettings(source="hh", eval_file=str(prompts), train_file=str(prompts))
    try:
        path, _ = write_completions(
            run, data, "good", sampling, best_of=2, batch_size=2, out=out, reporter=RecordingReporter(stop)
        )
    except _Stopped:
        return ""
    return path.read_text()


def rewards(model: str) -> list[float | None]:
    """Return the rewards of texts of different lengths, one of which cannot be scored."""
    reward_model = RewardModel.load(RewardSettings(model=model, batch_tokens=60))
    prompts = [Prompt(f"\n\nHuman: {'rice ' * (n % 7 + 1)}\n\nAssistant:") for n in range(16)]
    rows = reward_model.tokenize(prompts, [f" It is {'good ' * (n % 4)}{n}." for n in range(16)])
    return reward_model.score([*rows, "cannot be scored"])


def error_of(training: Training, folder: Path) -> str:
    """Return the message of the error that the training raises."""
    try:
        train(training, folder)
    except MeetError as error:
        return str(error)
    return ""
