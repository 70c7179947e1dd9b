"""Runs one stage: selects the parameters to train, trains them, and checks that the others did not change."""

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
from meetlm.config.world import World
from meetlm.data.formats import Item
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import MetricsWriter, ShowProgress, logged_seconds
from meetlm.training.checkpoints import checkpoint_step, checkpoints, load_trained, remove_leftovers
from meetlm.training.interrupt import SaveWhenSignalled
from meetlm.training.loop import StageTrainer, release
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

DONE = "stage.json"
"""File in a stage's folder that marks the stage as finished."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """The result of a stage; ``stage.json`` in its folder.

    Attributes:
        steps: Number of optimizer steps.
        seconds: Wall time without loading the model. After a resume it includes the time of the earlier steps, from
            ``metrics.jsonl``.
        trained_parameters: Number of trained parameters.
        lm_sha256: Hash of the language model after the stage.
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
    """Train ``policy`` in place. A finished stage is loaded; an interrupted one resumes at its last checkpoint.

    Args:
        policy: The policy to train.
        items: What the stage's format makes of each pair.
        stage: Trained parameters, learning rates, length.
        optim: Further settings of the optimizer.
        batch: Batch sizes.
        folder: Folder of the stage; created here.
        seed: Seed of the data order and of dropout.
        reference: Log-probs [items, 2] of the completions before the stage, for a pairwise objective.
        reporter: Shows the progress.

    Raises:
        ConfigError: The stage would train nothing.
    """
    world = World.current()
    set_trainable(policy, stage)
    folder.mkdir(parents=True, exist_ok=True)
    saved = checkpoints(folder)
    last = saved[-1] if saved else None
    if (folder / DONE).is_file() and last:
        load_trained(policy, last)
        return StageResult(**json.loads((folder / DONE).read_text()))
    lm_before = None if "lm" in stage.train else sha256_of(policy.lm)
    started = time.perf_counter()
    steps, steps_done = stage.num_steps(len(items), batch.pairs), checkpoint_step(last) if last else 0
    earlier_seconds = logged_seconds(folder / "metrics.jsonl", steps_done) if last else 0.0
    if last and steps_done >= steps:  # interrupted between the last checkpoint and the stage's record
        load_trained(policy, last)
    else:
        with (
            reporter.progress(stage.name, total=steps, unit="step", initial=steps_done) as progress,
            SaveWhenSignalled(world, reporter) as save_when_signalled,
        ):
            callbacks: list[TrainerCallback] = [save_when_signalled]
            if world.is_main:
                callbacks += [MetricsWriter(folder / "metrics.jsonl"), ShowProgress(progress)]
            trainer = StageTrainer(policy, items, stage, optim, batch, folder, seed, callbacks, reference)
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        steps = trainer.state.global_step
        release(trainer)
    seconds = earlier_seconds + time.perf_counter() - started
    policy.eval()
    lm_after = sha256_of(policy.lm)
    assert lm_before in (None, lm_after), "a stage that trains only the control changed the language model"
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    result = StageResult(steps, round(seconds, 1), trained, lm_after)
    world.wait()  # until all have read the stage's files
    if world.is_main:
        remove_leftovers(folder)  # of a process that was killed
        write_atomic(folder / DONE, json.dumps(asdict(result), indent=2) + "\n")
    return result


def set_trainable(policy: Policy, stage: StageSettings) -> None:
    """Set ``requires_grad`` of all parameters for the stage.

    Raises:
        ConfigError: Nothing would be trained.
    """
    policy.lm.requires_grad_("lm" in stage.train)
    policy.control.requires_grad_("control" in stage.train)
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        kind = policy.control.settings.kind
        raise ConfigError(f"stage {stage.name!r} trains nothing: train is {list(stage.train)}, control is {kind!r}")
