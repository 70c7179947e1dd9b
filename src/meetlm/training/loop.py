"""The training loop: one thin subclass of ``transformers.Trainer`` for every stage of every method.

The format turns each pair into one item of the training set, so both replies are always in the same optimizer step.
The loss is the objective's sum over the whole accumulated batch of all processes divided by the number of its units:
trained tokens, or pairs. A checkpoint holds the trained parameters, optimizer, scheduler, random states, position, and
the sums for the next line of metrics. The main process writes it under a temporary name, with the hashes of its files,
and then renames it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from meetlm.config.errors import DivergedError
from meetlm.config.files import explain_write_errors, sync, write_manifest
from meetlm.config.world import World
from meetlm.data.batch import Batch, Layout, collate
from meetlm.data.formats import Item
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import UseCurrentIntervals
from meetlm.training.checkpoints import (
    PARTIAL_FOLDER,
    WEIGHTS,
    checkpoints,
    load_trained,
    remove_leftovers,
)
from meetlm.training.order import PassSampler, data_seed, dropout_seed
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

OPEN_LOG = "open_log.json"
"""Sums since the last line of metrics: with ``log_steps`` above 1 a checkpoint may lie between two lines."""


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
        stand_in: Item of a forward pass without items, which a process runs when it has fewer items than others.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        is_pairwise: bool = False,
        share: bool = False,
        stand_in: tuple[Item, Tensor | None] | None = None,
    ) -> None:
        self.layout, self.is_pairwise, self.share = layout, is_pairwise, share
        self._stand_in = stand_in

    def __call__(self, items: list[tuple[Item, Tensor | None]]) -> Batch:
        """Return the batch of all sequences of ``items``; without items one of the stand-in, with no labels."""
        num_items = len(items)
        if self._stand_in is not None:
            items = items or [self._stand_in]
        batch = collate([sequence for item, _ in items for sequence in item], self.layout, share=self.share)
        if self.is_pairwise:
            batch["labels"] = torch.zeros(len(items), dtype=torch.int64)
            batch["reference"] = torch.cat([logps for _, logps in items if logps is not None])
        if num_items == 0:
            batch["labels"] = batch["labels"][:0]
        return batch


class _StepLoader(DataLoader[Any]):
    """Loads the forward passes of a :class:`PassSampler`; Trainer sets its epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        assert isinstance(self.batch_sampler, PassSampler)
        self.batch_sampler.set_epoch(epoch)


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
        self._policy, self._world = policy, World.current()
        self._passes = PassSampler(len(items), batch, seed, self._world)
        of_process = batch.of_process(self._world)
        self._resumed: Path | None = None
        kind = OBJECTIVES[stage.objective.kind]
        self._objective, self._is_pairwise = kind.build(stage.objective), kind.is_pairwise
        assert kind.is_pairwise == (reference is not None), "pairwise objectives have a reference, others have none"
        steps = stage.num_steps(len(items), batch.pairs)
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=of_process.micro,
            gradient_accumulation_steps=of_process.accumulation,
            max_steps=steps,
            learning_rate=stage.lr,
            lr_scheduler_type=optim.schedule,
            warmup_steps=round(optim.warmup * steps),
            max_grad_norm=optim.max_grad_norm,
            seed=dropout_seed(seed, self._world),
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
            ddp_find_unused_parameters=True,  # such as a soft prompt in a pass whose replies have no slot
        )
        arguments._n_gpu = 1  # otherwise Trainer splits a packed row among all visible GPUs
        self._items = dataset = ItemDataset(items, reference)
        collator = Collator(
            policy.layout, is_pairwise=kind.is_pairwise, share=policy.shares_prompts, stand_in=dataset[0]
        )
        super().__init__(
            model=policy,
            args=arguments,
            train_dataset=dataset,
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
        self.add_callback(_ContinueLog(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of this process's forward passes."""
        return _StepLoader(self._items, batch_sampler=self._passes, collate_fn=self.data_collator)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the objective's sum over this part of the batch, divided by the number of units of the whole batch.

        The gradients of the processes are averaged, so the loss is multiplied by their number.
        """
        assert not return_outputs and num_items_in_batch is not None
        logps = model(inputs["blocks"], inputs["num_completions"])
        sums = logps.sums()
        loss = self._objective(sums, inputs.get("reference"))
        is_counted = len(inputs["labels"]) > 0  # otherwise the batch is a stand-in
        with torch.no_grad():
            weights = inputs["weights"].double() * is_counted
            self._level_nll += (-sums.double() @ weights).cpu()
            self._level_tokens += (logps.counts().double() @ weights).cpu()
            self._input_tokens += inputs["num_input_tokens"] * is_counted
            self._units += len(inputs["labels"])
            for name, value in loss.sums.items():
                self._sums[name] = self._sums.get(name, 0.0) + float(value) * is_counted
        if self._world.size == 1:
            return loss.total / num_items_in_batch
        return loss.total * (is_counted * self._world.size) / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss per level (nats per token), the objective's values, and the input tokens since the last log.

        All of them are over all processes.
        """
        if "loss" in logs:
            names, levels = list(self._sums), len(self._level_nll)
            counts = torch.tensor([*self._sums.values(), self._units, self._input_tokens], dtype=torch.float64)
            totals = self._world.sum(torch.cat([self._level_nll, self._level_tokens, counts]))
            level_nll, level_tokens = totals[:levels], totals[levels : 2 * levels]
            *sums, units, input_tokens = totals[2 * levels :].tolist()
            for k, name in enumerate(self._policy.control.levels):
                if level_tokens[k] > 0 and not self._is_pairwise:  # both replies of a pair have one level
                    logs[f"loss/{name}"] = float(level_nll[k] / level_tokens[k])
            logs.update({name: value / units for name, value in zip(names, sums, strict=True)})
            logs["input_tokens"] = input_tokens
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
        self._resumed = Path(resume_from_checkpoint)
        load_trained(self._policy, self._resumed, names=())  # all files are read from here on

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write the checkpoint under a temporary name, rename it, and remove the one before.

        Each process writes its random states, the main process the rest.

        Raises:
            RunError: The disk is full, for example. The checkpoint before is intact.
        """
        partial = self.folder / PARTIAL_FOLDER
        with self._world.main_first():
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
        self.args.output_dir = str(partial)
        written = partial / f"checkpoint-{self.state.global_step}"
        target = self.folder / written.name
        last = checkpoints(self.folder)
        remedy = f"the same command continues from {last[-1].name if last else 'the beginning of the stage'}"
        try:
            with explain_write_errors(target, f"make room or choose another disk; {remedy}"):
                super()._save_checkpoint(model, trial)
                open_log = self._open_log()
                self._world.wait()
                if self._world.is_main:
                    (written / OPEN_LOG).write_text(json.dumps(open_log) + "\n")
                    write_manifest(written)
                    sync(written)
        except BaseException:
            if self._world.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            self.args.output_dir = str(self.folder)
        if self._world.is_main:
            self._finish_checkpoint(written, target)

    def _finish_checkpoint(self, written: Path, target: Path) -> None:
        """Move a written checkpoint to its place, and remove the one before."""
        shutil.rmtree(target, ignore_errors=True)
        written.rename(target)
        sync(self.folder, deep=False)  # the one before is removed only when this one is on disk
        remove_leftovers(self.folder)

    def _open_log(self) -> dict[str, Any]:
        """Return the sums since the last line of metrics, over all processes."""
        log = {
            "loss": float(self._tr_loss) / self._world.size,
            "level_nll": self._level_nll.tolist(),
            "level_tokens": self._level_tokens.tolist(),
            "sums": self._sums,
            "units": self._units,
            "input_tokens": float(self._input_tokens),
        }
        flat, names = tree_flatten(log)
        totals = self._world.sum(torch.tensor(flat, dtype=torch.float64)).tolist()
        return {"last_logged": self._globalstep_last_logged, **tree_unflatten(totals, names)}

    def continue_log(self) -> None:
        """Set the sums to those of the checkpoint that training resumes from, if any."""
        if self._resumed is None:
            return
        log = json.loads((self._resumed / OPEN_LOG).read_text())
        self._globalstep_last_logged = log["last_logged"]
        self._tr_loss += log["loss"]  # the mean over processes is logged, and the sum of what follows
        if self._world.is_main:
            self._level_nll += torch.tensor(log["level_nll"], dtype=torch.float64)
            self._level_tokens += torch.tensor(log["level_tokens"], dtype=torch.float64)
            self._sums, self._units, self._input_tokens = log["sums"], int(log["units"]), log["input_tokens"]
        else:
            self._sums = dict.fromkeys(log["sums"], 0.0)


class _ContinueLog(TrainerCallback):
    """Restores the sums of a checkpoint after ``Trainer`` has set its own to zero."""

    def __init__(self, trainer: StageTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Restore them."""
        self._trainer.continue_log()


def release(trainer: StageTrainer) -> None:
    """Detach a trainer from its policy: hooks of its wrapper would exchange the gradients of the next stage too."""
    trainer.model_wrapped = trainer._policy
    trainer.callback_handler.model = None
    trainer.accelerator.free_memory()


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


def _supports_bf16(device: torch.device) -> bool:
    """Whether training runs under bf16 autocast: on CUDA devices that support it."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
