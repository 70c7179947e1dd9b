"""Runs one stage: selects what is trained, trains it, and proves that the rest did not move."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor
from transformers import TrainerCallback

from meetlm.config.errors import ConfigError
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.formats import Item
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import MetricsWriter, ProgressCallback, logged_seconds
from meetlm.training.loop import StageTrainer, checkpoint_step, checkpoints, load_trained
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

DONE = "stage.json"


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage did; ``stage.json`` in its folder.

    Attributes:
        steps: Optimizer steps.
        seconds: Wall time, the model's loading not counted; of what earlier calls did and this one went on from, as
            ``metrics.jsonl`` has it.
        trained_parameters: How many numbers the optimizer moved.
        lm_sha256: Of the language model after the stage.
    """

    steps: int
    seconds: float
    trained_parameters: int
    lm_sha256: str


def run_stage(
    policy: Policy,
    items: Sequence[Item],
    stage: StageSettings,
    optim: OptimSettings,
    batch: BatchSettings,
    folder: Path,
    *,
    seed: int,
    reference: Tensor | None = None,
    reporter: Reporter = SILENT,
) -> StageResult:
    """Train ``policy`` in place; a finished stage is loaded, an interrupted one continues from its last checkpoint.

    Args:
        policy: To train.
        items: What the stage's format makes of each pair.
        stage: What to train, rates, length.
        optim: The optimizer's other settings.
        batch: Sizes.
        folder: The stage's folder; created.
        seed: Of order and dropout.
        reference: Log-probs [items, 2] of the completions before the stage, for an objective that compares.
        reporter: Shows the steps and their losses.

    Raises:
        ConfigError: The stage would train nothing.
    """
    set_trainable(policy, stage)
    folder.mkdir(parents=True, exist_ok=True)
    earlier = checkpoints(folder)
    if (folder / DONE).is_file() and earlier:
        load_trained(policy, earlier[-1])
        return StageResult(**json.loads((folder / DONE).read_text()))
    before = None if "lm" in stage.train else sha256_of(policy.lm)
    started = time.perf_counter()
    steps = stage.num_steps(len(items), batch.pairs)
    steps_before = checkpoint_step(earlier[-1]) if earlier else 0
    seconds_before = logged_seconds(folder / "metrics.jsonl", steps_before) if earlier else 0.0
    if steps_before >= steps:  # stopped between the last checkpoint and the stage's record
        load_trained(policy, earlier[-1])
    else:
        with reporter.progress(stage.name, total=steps, unit="step", initial=steps_before) as progress:
            callbacks: list[TrainerCallback] = [MetricsWriter(folder / "metrics.jsonl"), ProgressCallback(progress)]
            trainer = StageTrainer(policy, items, stage, optim, batch, folder, seed, callbacks, reference)
            trainer.train(resume_from_checkpoint=str(earlier[-1]) if earlier else None)
            steps = trainer.state.global_step
    seconds = seconds_before + time.perf_counter() - started
    policy.eval()
    after = sha256_of(policy.lm)
    assert before is None or before == after, "a stage that trains the control alone moved the language model"
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    result = StageResult(steps, round(seconds, 1), trained, after)
    write_atomic(folder / DONE, json.dumps(asdict(result), indent=2) + "\n")
    return result


def set_trainable(policy: Policy, stage: StageSettings) -> None:
    """Set ``requires_grad`` as the stage wants it.

    Raises:
        ConfigError: Nothing would be trained.
    """
    policy.lm.requires_grad_("lm" in stage.train)
    policy.control.requires_grad_("control" in stage.train)
    if not any(p.requires_grad for p in policy.parameters()):
        kind = policy.control.settings.kind
        raise ConfigError(f"stage {stage.name!r} trains nothing: train is {list(stage.train)}, control is {kind!r}")
