"""The programs of meetlm: its trainer and generation session, with a gate before each step and rows in their order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from gate import Gate, own_memory
from rows import Rows, real_tokens
from stages import STAGES
from torch.utils.data import SequentialSampler
from turns import Turns, TurnsMixin

from meetlm.data.formats import FORMATS
from meetlm.data.levels import PAIR_LEVELS
from meetlm.generation.decoding import Branch
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import checkpoint_activations
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import MetricsWriter
from meetlm.training.loop import StageTrainer
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings


class InOrder(TurnsMixin, StageTrainer):
    """A stage's trainer that takes the rows in their order."""

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


def train(job: str, program: str, rows: Rows, gate: Gate) -> None:
    """Run a training job of ours, step by step."""
    control_settings, stage_settings = STAGES[job, program]
    lm = rows.lm()
    if rows.scale.checkpointing:
        checkpoint_activations(lm)
    lm.eval()
    stage = StageSettings(name=program, epochs=1, **stage_settings)
    levels = PAIR_LEVELS if FORMATS[stage.format].uses_levels else PAIR_LEVELS.best_only
    control = rows.control(lm, control_settings, levels)
    items = rows.items(stage.format, control)
    policy = Policy(lm, control, longest=max(len(sequence.ids) for item in items for sequence in item))
    set_trainable(policy, stage)
    own_memory([lm])
    gate.memory.trains(policy.parameters())
    reference = None
    if stage.objective.kind == "dpo":
        gate.ready("reference")
        sums, _ = policy.score([sequence for item in items for sequence in item])
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

        def tokens_of(step: int) -> int:
            return real_tokens(items[step * size : (step + 1) * size], slot)

        trainer.add_callback(Turns(trainer, gate, {"layout": policy.layout}, tokens_of))
        trainer.train()


def generate(rows: Rows, gate: Gate) -> None:
    """Continue all prompts in one batch, again and again."""
    lm = rows.lm().eval()
    control = rows.control(lm, {"kind": "none"})
    own_memory([lm])
    sampling = Sampling(max_new_tokens=rows.scale.new_tokens)
    requests = [Request((Branch(ids, (1.0,)),), sampling) for ids in rows.prompts()]
    session = Session(Policy(lm, control), rows.format, batch_size=len(requests))
    gate.ready("step")
    while True:
        replies = session.complete(requests)
        gate.done(tokens=sum(reply.num_tokens for reply in replies), texts=[reply.text for reply in replies])
