"""The programs of others: TRL's trainers, PEFT's adapters in a plain loop, and transformers' ``generate``.

They receive ids and labels, so that no step tokenises, and the same initial adapters as ours. Settings that differ from
their defaults are in ``PLAIN`` and below, and in RESULTS.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from gate import Gate, own_memory
from rows import Rows, real_tokens
from stages import STAGES, rate
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from turns import Turns, TurnsMixin

from meetlm.controls.base import Control
from meetlm.data.batch import IGNORE
from meetlm.data.encoding import Encoded
from meetlm.data.formats import Item
from meetlm.data.levels import PAIR_LEVELS

PLAIN: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
}
"""Settings of every trainer of TRL, beside f32 on a CPU and checkpointing by job: a constant learning rate, the rows in
their order."""
QUIET: dict[str, Any] = {
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Settings that do not concern the work."""
VARIANTS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "trl": (None, {}),
    "trl-prompt": (None, {}),
    "trl-one-by-one": (1, {}),
    "trl-padding-free": (None, {"padding_free": True, "max_length": None}),
    "trl-padding-free-2": (2, {"padding_free": True, "max_length": None}),
    "trl-packed": (1, {"gradient_accumulation_steps": 2, "packing": True, "max_length": 1024}),
    "trl-grouped": (None, {"train_sampling_strategy": "group_by_length"}),
}
"""SFTTrainer by program: rows per micro-batch, where they are not all rows of a step, and settings."""
MANY = 50
"""Steps' worth of rows for ``trl-grouped``, which groups within 50 batches, and ``trl-packed``, which fits rows."""
LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
PROMPT: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 50}


class Sft(TurnsMixin, SFTTrainer):
    """TRL's trainer, recording losses and tokens."""


class Dpo(TurnsMixin, DPOTrainer):
    """TRL's trainer, recording losses and tokens; its rows are ids, and scoring the reference waits at the gate."""

    gate: Gate

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self.gate.ready("reference")
        prepared = super()._precompute_ref_logps(dataset, name, batch_size)
        self.gate.done("prepared", pairs=len(dataset))
        return prepared


def plain(rows: Rows) -> dict[str, Any]:
    """Return the settings of every trainer of TRL on a device."""
    scale = rows.scale
    return {"bf16": scale.device == "cuda", "activation_checkpointing": scale.checkpointing, **PLAIN}


def quiet(rows: Rows, folder: str) -> dict[str, Any]:
    """Return the settings of every trainer of TRL that do not concern the work."""
    scale = rows.scale
    return {"output_dir": folder, "max_steps": scale.steps, "use_cpu": scale.device == "cpu", **QUIET}


def sft(job: str, program: str, rows: Rows, gate: Gate) -> None:
    """Run TRL's SFTTrainer on a job, with or without an adapter."""
    micro, changes = VARIANTS[program]
    sizes = {"per_device_train_batch_size": micro or rows.scale.rows}
    if micro:
        sizes["gradient_accumulation_steps"] = rows.scale.rows // micro
    changes = {**sizes, **changes}
    lm: nn.Module = rows.lm()
    adapter: dict[str, Any] = {}
    if job == "lora-sft":
        adapter = LORA
        lm = adapted(lm, peft.LoraConfig(**LORA), rows.control(lm, STAGES[job, "ours"][0]))
    elif job == "soft-prompt":
        adapter = PROMPT
        lm = adapted(lm, peft.PromptTuningConfig(**PROMPT), rows.control(lm, STAGES[job, "ours"][0]))
    items = rows.items("chosen", steps=MANY if program in ("trl-grouped", "trl-packed") else None)
    settings = {**plain(rows), "learning_rate": rate(job), **changes}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Sft(
            model=lm,
            args=SFTConfig(**quiet(rows, folder), **settings),
            train_dataset=Dataset.from_list([sft_row(sequence) for (sequence,) in items]),
            processing_class=rows.tokenizer,
        )
        _run(trainer, gate, settings, adapter)


def dpo(program: str, rows: Rows, gate: Gate) -> None:
    """Run TRL's DPOTrainer: with its reference model in each step, or with log-probs computed before."""
    items = rows.items("pairwise")
    Dpo.gate = gate
    settings = {
        **plain(rows),
        "per_device_train_batch_size": rows.pairs,
        "learning_rate": rate("dpo"),
        **({"precompute_ref_log_probs": True} if program == "trl-precomputed" else {}),
    }
    lm = rows.lm()
    own_memory([lm])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Dpo(
            model=lm,
            ref_model=None if program == "trl-precomputed" or not rows.scale.model else rows.lm(),
            args=DPOConfig(**quiet(rows, folder), **settings),
            train_dataset=_on_disk([dpo_row(item) for item in items], Path(folder)),
            processing_class=rows.tokenizer,
        )
        _run(trainer, gate, settings, {})


def _run(trainer: Any, gate: Gate, settings: dict[str, Any], adapter: dict[str, Any]) -> None:
    models = [trainer.model, *([trainer.ref_model] if getattr(trainer, "ref_model", None) else [])]
    own_memory(models)
    gate.memory.trains(trainer.model.parameters())
    trainer.add_callback(Turns(trainer, gate, {"settings": settings, "adapter": adapter}))
    trainer.train()


def adapters(rows: Rows, gate: Gate) -> None:
    """Train two LoRA adapters of PEFT in one run: one micro-batch per level, one after the other."""
    lm = rows.lm()
    control = rows.control(lm, STAGES["lora-two-levels", "ours"][0], PAIR_LEVELS)
    names = {level: name for level, name in enumerate(control.levels)}
    model = peft.get_peft_model(lm, peft.LoraConfig(**LORA), adapter_name=names[0])
    model.add_adapter(names[1], peft.LoraConfig(**LORA))
    for level, name in names.items():
        peft.set_peft_model_state_dict(model, control.adapter_state(control.levels.weights([level])), adapter_name=name)
    model.set_requires_grad(list(names.values()), True)
    model.train()
    if rows.scale.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own_memory([model])
    trained = [p for p in model.parameters() if p.requires_grad]
    gate.memory.trains(trained)
    settings = {"learning_rate": rate("lora-two-levels"), "weight_decay": 0.0, "max_grad_norm": 1.0}
    device = rows.scale.device
    optimizer = torch.optim.AdamW(trained, lr=settings["learning_rate"], weight_decay=0.0, fused=True)
    items = rows.items("conditional")
    gate.ready(
        "step",
        settings={
            **settings,
            "optim": "torch's AdamW, fused",
            "use_cache": False,
            "rows per micro-batch": rows.pairs,
            "gradient_checkpointing": rows.scale.checkpointing,
        },
        adapter=LORA,
    )
    for start in range(0, len(items), rows.pairs):
        step_items = items[start : start + rows.pairs]
        total = sum(sequence.num_trained for item in step_items for sequence in item)
        loss = 0.0
        for level, side in ((1, 0), (0, 1)):  # an item is chosen at good, rejected at bad
            model.set_adapter(names[level])
            model.set_requires_grad(list(names.values()), True)  # set_adapter freezes the other one
            batch = padded([item[side] for item in step_items], rows.tokenizer.pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                part = model(**batch, num_items_in_batch=total, use_cache=False).loss
            part.backward()
            loss += float(part.detach())
        nn.utils.clip_grad_norm_(trained, settings["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        gate.done(loss=loss, tokens=real_tokens(step_items))


def generate(rows: Rows, gate: Gate) -> None:
    """Continue all prompts in one batch with ``generate``, again and again."""
    lm = rows.lm().eval()
    own_memory([lm])
    prompts = rows.prompts()
    longest = max(map(len, prompts))
    pad, end = rows.tokenizer.pad_token_id, rows.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"max_new_tokens": rows.scale.new_tokens, "do_sample": False}
    gate.ready("step", settings={**settings, "padding": "left"}, adapter={})
    while True:
        with torch.no_grad():
            new = lm.generate(input_ids=ids, attention_mask=mask, eos_token_id=end, pad_token_id=pad, **settings)
        replies = [row[: row.index(end) + 1] if end in row else row for row in new[:, longest:].tolist()]
        texts = [rows.format.decode([i for i in reply if i != end]).strip() for reply in replies]
        gate.done(tokens=sum(map(len, replies)), texts=texts)


def adapted(lm: PreTrainedModel, config: peft.PeftConfig, control: Control) -> peft.PeftModel:
    """Return the model with an adapter of PEFT's that starts where ours starts."""
    model = peft.get_peft_model(lm, config)
    peft.set_peft_model_state_dict(model, control.adapter_state(control.levels.weights([0])))
    return model


def sft_row(sequence: Encoded) -> dict[str, list[int]]:
    """Return a row for SFTTrainer: ids, and labels for the completion."""
    (span,) = sequence.spans
    labels = [IGNORE] * span.start + list(sequence.ids[span.start :])
    return {"input_ids": list(sequence.ids), "labels": labels}


def dpo_row(item: Item) -> dict[str, list[int]]:
    """Return a row for DPOTrainer."""
    chosen, rejected = item
    start = chosen.spans[0].start
    return {
        "prompt_ids": list(chosen.ids[:start]),
        "chosen_ids": list(chosen.ids[start:]),
        "rejected_ids": list(rejected.ids[start:]),
    }


def padded(sequences: Sequence[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Return a batch as transformers' collators make it: padded on the right."""
    rows = [sft_row(sequence) for sequence in sequences]
    stack = partial(pad_sequence, batch_first=True)
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return {
        "input_ids": stack(ids, padding_value=pad),
        "attention_mask": stack([torch.ones_like(row) for row in ids]),
        "labels": stack([torch.tensor(row["labels"]) for row in rows], padding_value=IGNORE),
    }


def _on_disk(rows: list[dict[str, list[int]]], folder: Path) -> Dataset:
    """Return a data set with a folder to cache in: TRL keeps reference log-probs beside it."""
    Dataset.from_list(rows).save_to_disk(folder / "rows")
    return Dataset.load_from_disk(folder / "rows")
