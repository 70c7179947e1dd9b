"""The training loop: one thin subclass of ``transformers.Trainer`` for every stage of every method.

The format turns each pair into one item of the training set, so both replies are always in the same optimizer step.
The loss is the objective's sum over the whole accumulated batch divided by the number of its units: trained tokens, or
pairs. A checkpoint holds the trained parameters, optimizer, scheduler, random states and position. It is written under
a temporary name and then renamed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from meetlm.config.errors import DivergedError, RunError
from meetlm.config.files import sync
from meetlm.data.batch import Batch, Layout, collate
from meetlm.data.formats import Item
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import UseCurrentIntervals
from meetlm.training.order import data_seed
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

WEIGHTS = "model.safetensors"


class ItemDataset(Dataset[tuple[Item, Tensor | None]]):
    """Items, each with the log-probs of its completions under the reference, or ``None``."""

    def __init__(self, items: Sequence[Item], reference: Tensor | None = None) -> None:
        self.items, self.reference = items, reference

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, Tensor | None]:
        return self.items[index], None if self.reference is None else self.reference[index]


class Collator:
    """Collate items into a batch: the sequences of the first item, then of the second, ….

    Args:
        layout: Layout of the batch.
        is_pairwise: Whether the loss is divided by the number of pairs rather than of trained tokens.
        share: Whether sequences of an item with the same prompt share its computation.
    """

    def __init__(self, layout: Layout, *, is_pairwise: bool = False, share: bool = False) -> None:
        self.layout, self.is_pairwise, self.share = layout, is_pairwise, share

    def __call__(self, items: list[tuple[Item, Tensor | None]]) -> Batch:
        """Return the batch of all sequences of ``items``."""
        batch = collate([sequence for item, _ in items for sequence in item], self.layout, share=self.share)
        if self.is_pairwise:
            batch["labels"] = torch.zeros(len(items), dtype=torch.int64)
            batch["reference"] = torch.cat([logps for _, logps in items if logps is not None])
        return batch


class StageTrainer(Trainer):
    """Trains a policy for one stage.

    Args:
        policy: A policy whose ``requires_grad`` is set for the stage.
        items: The training set.
        stage: Learning rates and length.
        optim: Further settings of the optimizer.
        batch: Batch sizes, intervals of logs and checkpoints.
        folder: Folder for checkpoints.
        seed: Seed of the data order and of dropout.
        callbacks: Progress, metrics.
        reference: Log-probs [items, 2] under the reference, for a pairwise objective only.
    """

    def __init__(
        self,
        policy: Policy,
        items: Sequence[Item],
        stage: StageSettings,
        optim: OptimSettings,
        batch: BatchSettings,
        folder: Path,
        seed: int,
        callbacks: list[TrainerCallback],
        reference: Tensor | None = None,
    ) -> None:
        self.stage, self.optim, self.folder = stage, optim, folder
        self._policy = policy
        kind = OBJECTIVES[stage.objective.kind]
        self._objective, self._is_pairwise = kind.build(stage.objective), kind.is_pairwise
        assert kind.is_pairwise == (reference is not None), "pairwise objectives have a reference, others have none"
        steps = stage.num_steps(len(items), batch.pairs)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=batch.micro,
            gradient_accumulation_steps=batch.accumulation,
            max_steps=steps,
            learning_rate=stage.lr,
            lr_scheduler_type=optim.schedule,
            warmup_steps=round(optim.warmup * steps),
            max_grad_norm=optim.max_grad_norm,
            seed=seed,
            data_seed=data_seed(seed),
            bf16=_supports_bf16(policy.device),  # weights, optimizer and controls stay f32
            use_cpu=policy.device.type == "cpu",
            report_to=list(batch.report_to) or "none",
            logging_steps=batch.log_steps,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=batch.save_steps or math.ceil(len(items) / batch.pairs),
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            optim="adamw_torch",
        )
        arguments._n_gpu = 1  # otherwise Trainer splits a packed row among all visible GPUs
        collator = Collator(policy.layout, is_pairwise=kind.is_pairwise, share=policy.shares_prompts)
        super().__init__(
            model=policy,
            args=arguments,
            train_dataset=ItemDataset(items, reference),
            data_collator=collator,  # type: ignore[arg-type]  # a TypedDict is a dict
            callbacks=[UseCurrentIntervals(), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # makes Trainer count the labels of the whole accumulated batch
        self._loss_shifts_labels = False
        levels = len(policy.control.levels)
        self._level_nll = torch.zeros(levels, dtype=torch.float64)
        self._level_tokens = torch.zeros(levels, dtype=torch.float64)
        self._sums: dict[str, float] = {}
        self._units = 0
        self._input_tokens = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the objective's sum over this part of the batch, divided by the number of units of the whole batch."""
        assert not return_outputs and num_items_in_batch is not None
        logps = model(inputs["blocks"], inputs["num_completions"])
        sums = logps.sums()
        loss = self._objective(sums, inputs.get("reference"))
        with torch.no_grad():
            weights = inputs["weights"].double()
            self._level_nll += (-sums.double() @ weights).cpu()
            self._level_tokens += (logps.counts().double() @ weights).cpu()
            self._input_tokens += inputs["num_input_tokens"]
            self._units += len(inputs["labels"])
            for name, value in loss.sums.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value)
        return loss.total / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss per level (nats per token), the objective's values, and the input tokens since the last log."""
        if "loss" in logs:
            for k, name in enumerate(self._policy.control.levels):
                if self._level_tokens[k] > 0 and not self._is_pairwise:  # both replies of a pair have one level
                    logs[f"loss/{name}"] = float(self._level_nll[k] / self._level_tokens[k])
            logs.update({name: value / self._units for name, value in self._sums.items()})
            logs["input_tokens"] = float(self._input_tokens)
            self._level_nll.zero_()
            self._level_tokens.zero_()
            self._sums, self._units, self._input_tokens = {}, 0, 0
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of the stage."""
        del model
        if self.optimizer is None:
            self.optimizer = adamw(self._policy, self.stage, self.optim)
        return self.optimizer

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm of the gradients of a step, before any weight changes.

        Raises:
            DivergedError: The norm is not finite. The step is not applied, and nothing is saved.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and not math.isfinite(norm):
            raise DivergedError(
                f"stage {self.stage.name!r} has diverged: the gradients of step {self.state.global_step + 1} have norm "
                f"{float(norm)}; use a lower learning rate (it is {self.stage.lr:g})"
            )
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write the trained parameters, under their own names."""
        assert output_dir is not None
        state = self._policy.state_dict() if state_dict is None else state_dict
        trained = {name: state[name].contiguous() for name, p in self._policy.named_parameters() if p.requires_grad}
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(trained, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load what :meth:`_save` wrote; every trained parameter must be there."""
        del model
        load_trained(self._policy, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint under a temporary name, rename it, and remove the one before."""
        partial = self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.args.output_dir = str(partial)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(self.folder)
        written = partial / f"checkpoint-{self.state.global_step}"
        target = self.folder / written.name
        sync(written)
        shutil.rmtree(target, ignore_errors=True)
        written.rename(target)
        partial.rmdir()
        sync(self.folder, deep=False)  # the one before is removed only when this one is on disk
        for old in checkpoints(self.folder)[:-1]:
            shutil.rmtree(old)


def adamw(policy: Policy, stage: StageSettings, optim: OptimSettings) -> torch.optim.Optimizer:
    """Return AdamW with a group for the language model and one for the control (no weight decay)."""
    groups = []
    for name, module in (("lm", policy.lm), ("control", policy.control)):
        lr = stage.control_lr if name == "control" and stage.control_lr else stage.lr
        weight_decay = optim.weight_decay if name == "lm" else 0.0
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if trained:
            groups.append({"params": trained, "lr": lr, "weight_decay": weight_decay})
    return torch.optim.AdamW(groups, fused=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a stage, oldest first."""
    return sorted((path for path in folder.glob("checkpoint-*") if path.is_dir()), key=checkpoint_step)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a stage; its metrics and its record stay."""
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)


def load_trained(policy: Policy, checkpoint: Path) -> None:
    """Load the trained parameters of a checkpoint into ``policy``, whose ``requires_grad`` selects them.

    Raises:
        RunError: The checkpoint holds other tensors.
    """
    state = load_file(checkpoint / WEIGHTS)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    differing = sorted(trained.symmetric_difference(state))
    if differing:
        raise RunError(
            f"{checkpoint}: the checkpoint belongs to another stage: {len(differing)} tensors are missing or unknown, "
            f"such as {differing[0]}"
        )
    policy.load_state_dict(state, strict=False)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _supports_bf16(device: torch.device) -> bool:
    """Whether training runs under bf16 autocast: on CUDA devices that support it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
