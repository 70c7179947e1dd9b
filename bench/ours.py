"""The programs of meetlm: its own trainer and engine, with a gate before each step and rows in their order."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from flops import Flops
from gate import Gate, own_memory
from jobs import PROFILE
from rows import Rows, real_tokens
from stages import STAGES
from step_profile import StepProfile
from torch import Tensor
from torch.utils.data import SequentialSampler
from turns import Turns, TurnsMixin

from meetlm.controls.linear import SIBLINGS
from meetlm.data.encoding import one_hot
from meetlm.generation.engine import Engine
from meetlm.generation.rows import Request
from meetlm.generation.sampling import Sampling
from meetlm.policy.loading import checkpoint_activations
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import MetricsWriter
from meetlm.training.loop import StageTrainer
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings


class InOrder(TurnsMixin, StageTrainer):
    """A stage's trainer that takes the rows as they come and notes what each step was.

    Attributes:
        flops: Counts a batch.
        turn_flops: Of the step under way, by kind.
    """

    flops: Flops
    turn_flops: Counter[str]

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Train, and count."""
        self.turn_flops += self.flops.of(inputs["blocks"])
        return super().training_step(model, inputs, num_items_in_batch)


def train(job: str, program: str, rows: Rows, gate: Gate) -> None:
    """Run a training job of ours, step by step."""
    of_control, of_stage = STAGES[job, program]
    lm = rows.lm()
    if rows.scale.checkpointing:
        checkpoint_activations(lm)
    lm.eval()
    control = rows.control(lm, of_control)
    stage = StageSettings(name=program, epochs=1, **of_stage)
    items = rows.items(stage.format, control)
    policy = Policy(lm, control, longest=max(len(one.ids) for item in items for one in item))
    set_trainable(policy, stage)
    own_memory([lm])
    gate.memory.trains(policy.parameters())
    reference = None
    if stage.objective.kind == "dpo":
        flat = [one for item in items for one in item]
        gate.ready("reference")
        sums, _ = policy.score(flat)
        gate.done("prepared", pairs=len(items))
        reference = sums.view(-1, 2)
    slot = len(control.slots[-1])
    size = rows.scale.rows if stage.format == "chosen" else rows.pairs
    with tempfile.TemporaryDirectory() as folder:
        trainer = InOrder(
            policy,
            items,
            stage,
            OptimSettings(warmup=0, schedule="constant"),
            BatchSettings(pairs=size, micro_pairs=size, save_steps=10**6),
            Path(folder),
            0,
            [MetricsWriter(Path(folder) / "metrics.jsonl")],
            reference,
        )

        rank = int(of_control.get("rank", 0))
        trainer.flops = Flops(lm, trains_lm="lm" in stage.train, rank=rank, slot=slot > 0)
        trainer.turn_flops = Counter()

        def about(step: int) -> dict[str, Any]:
            taken, counted = items[step * size : (step + 1) * size], trainer.turn_flops
            trainer.turn_flops = Counter()
            return {"tokens": real_tokens(taken, slot), "flops": counted.total(), "product_flops": counted["products"]}

        profile = StepProfile(rows.scale.device, narrow=max(map(len, SIBLINGS)) * len(control.levels) * rank)
        trainer.add_callback(Turns(trainer, gate, {"layout": policy.layout}, about, profile))
        trainer.train()


def generate(rows: Rows, gate: Gate) -> None:
    """Continue all prompts in one batch, again and again."""
    lm = rows.lm().eval()
    control = rows.control(lm, {"kind": "none"})
    engine = Engine(Policy(lm, control), rows.format)
    own_memory([lm])
    requests = [Request(ids, one_hot(0, 1), number) for number, ids in enumerate(rows.prompts())]
    sampling = Sampling(max_new_tokens=rows.scale.new_tokens)
    profile = StepProfile(rows.scale.device)
    word = gate.ready("step")
    while True:
        if word == PROFILE:
            profile.start()
        with torch.no_grad():
            done = engine.generate(requests, sampling, batch_size=len(requests))
        more = {"profile": profile.stop()} if word == PROFILE else {}
        word = gate.done(tokens=sum(one.num_tokens for one in done), texts=[one.text for one in done], **more)
