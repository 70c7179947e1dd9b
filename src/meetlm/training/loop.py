"""The loop: one thin subclass of ``transformers.Trainer`` that every stage of every method goes through.

An item of the training set is what the format makes of a pair, so both replies are always in the same optimizer step.
The loss is the objective's sum over the whole accumulated batch divided by its units: trained tokens, or pairs.
A checkpoint holds what is trained (and optimizer, scheduler, generators, position), is written beside its place and
then renamed.
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


class Items(Dataset[tuple[Item, Tensor | None]]):
    """Items, each with the reference's log-probs of its completions where there is a reference."""

    def __init__(self, items: Sequence[Item], reference: Tensor | None = None) -> None:
        self.items, self.reference = items, reference

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Item, Tensor | None]:
        return self.items[index], None if self.reference is None else self.reference[index]


class Collator:
    """Items to a batch: the sequences of the first item, of the second, ….

    Args:
        layout: Of the batch.
        is_pairwise: Whether the loss is normalised by pairs rather than by trained tokens.
        share: Whether an item's sequences share their prompt where it is the same.
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
        policy: With ``requires_grad`` set as the stage wants it.
        items: The training set.
        stage: Rates and length.
        optim: The optimizer's other settings.
        batch: Sizes, logging, checkpoints.
        folder: Where checkpoints go.
        seed: Of the data order and of dropout.
        callbacks: Progress, metrics.
        reference: Log-probs [items, 2] under the reference, for an objective that compares.
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
        assert kind.is_pairwise == (reference is not None), "an objective that compares has a reference, no other has"
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
            bf16=_autocasts(policy.device),  # weights, optimizer and controls stay f32
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
        arguments._n_gpu = 1  # Trainer would split a packed row among all the GPUs it sees
        collator = Collator(policy.layout, is_pairwise=kind.is_pairwise, share=policy.shares_prompts)
        super().__init__(
            model=policy,
            args=arguments,
            train_dataset=Items(items, reference),
            data_collator=collator,  # type: ignore[arg-type]  # a TypedDict is a dict
            callbacks=[UseCurrentIntervals(), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.model_accepts_loss_kwargs = True  # Trainer then counts the labels of the whole accumulated batch
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
        """Return the objective's sum over this part of the batch, divided by the whole batch's units."""
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
        """Add the loss per level (nats per token), what the objective says, and the tokens read since the last line."""
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
        """Return the norm of the gradients of a step, before any of them moves a weight.

        Raises:
            DivergedError: It is not finite. The step is not taken, and nothing of it is saved.
        """
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        if norm is not None and not math.isfinite(norm):
            raise DivergedError(
                f"stage {self.stage.name!r} has diverged: the gradients of step {self.state.global_step + 1} have norm "
                f"{float(norm)}; a lower rate may help (it is {self.stage.lr:g})"
            )
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write what is trained, under its own names."""
        assert output_dir is not None
        state = self._policy.state_dict() if state_dict is None else state_dict
        trained = {name: state[name].contiguous() for name, p in self._policy.named_parameters() if p.requires_grad}
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_file(trained, Path(output_dir) / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load what :meth:`_save` wrote; every trained tensor must be there."""
        del model
        load_trained(self._policy, Path(resume_from_checkpoint))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint beside its place, then rename it and drop the one before."""
        partial = self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.args.output_dir = str(partial)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(self.folder)
        done = partial / f"checkpoint-{self.state.global_step}"
        target = self.folder / done.name
        sync(done)
        shutil.rmtree(target, ignore_errors=True)
        done.rename(target)
        partial.rmdir()
        sync(self.folder, deep=False)  # the one before goes only when this one is on the disk
        for old in checkpoints(self.folder)[:-1]:
            shutil.rmtree(old)


def adamw(policy: Policy, stage: StageSettings, optim: OptimSettings) -> torch.optim.Optimizer:
    """Return AdamW with a group for the language model and one for the control (no weight decay)."""
    groups = []
    for name, module in (("lm", policy.lm), ("control", policy.control)):
        rate = stage.control_lr if name == "control" and stage.control_lr else stage.lr
        trained = [p for p in module.parameters() if p.requires_grad]
        decay = optim.weight_decay if name == "lm" else 0.0
        if trained:
            groups.append({"params": trained, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(groups, fused=True)


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a stage, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir()]
    return sorted(found, key=checkpoint_step)


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a stage; its metrics and record stay."""
    for checkpoint in checkpoints(folder):
        shutil.rmtree(checkpoint)


def load_trained(policy: Policy, checkpoint: Path) -> None:
    """Load the trained tensors of a checkpoint into ``policy``, whose ``requires_grad`` says which they are.

    Raises:
        RunError: The checkpoint holds other tensors than those.
    """
    state = load_file(checkpoint / WEIGHTS)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    odd = sorted(trained.symmetric_difference(state))
    if odd:
        raise RunError(f"{checkpoint} is not of this stage: {len(odd)} tensors differ, such as {odd[0]}")
    policy.load_state_dict(state, strict=False)


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step at which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def _autocasts(device: torch.device) -> bool:
    """Whether training runs under bf16 autocast: on CUDA, where the card has it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
