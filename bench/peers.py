"""The programs of others: TRL's trainers, PEFT's adapters in a plain loop, and transformers' ``generate``.

They are given ids and labels, so that nothing is tokenised in a step, and the initial adapters of ours. What is set
beyond their own defaults is in ``PLAIN`` and below, and each program tells it: RESULTS.md names every setting.
"""

from __future__ import annotations

import json
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

PLAIN: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
}
"""Set for every trainer of TRL, beside f32 on a CPU and checkpointing as the job has it: the same rate at each step,
the rows in their order."""
QUIET: dict[str, Any] = {
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Has nothing to do with the work."""
VARIANTS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "trl": (None, {}),
    "trl-prompt": (None, {}),
    "trl-one-by-one": (1, {}),
    "trl-padding-free": (None, {"padding_free": True, "max_length": None}),
    "trl-padding-free-2": (2, {"padding_free": True, "max_length": None}),
    "trl-packed": (1, {"gradient_accumulation_steps": 2, "packing": True, "max_length": 1024}),
    "trl-grouped": (None, {"train_sampling_strategy": "group_by_length"}),
}
"""Of SFTTrainer by program: rows of a micro-batch, where they are not all of a step, and settings."""
MANY = 50
"""Steps' worth of rows for ``trl-grouped``, which groups within 50 batches, and ``trl-packed``, which fits rows."""
LORA: dict[str, Any] = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "target_modules": "all-linear"}
PROMPT: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 50}


class Sft(TurnsMixin, SFTTrainer):
    """TRL's trainer, noting losses and tokens."""


class Dpo(TurnsMixin, DPOTrainer):
    """TRL's trainer, noting losses and tokens; its rows are ids already, and its reference pass waits at the gate."""

    gate: Gate

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        self.gate.ready("reference")
        done = super()._precompute_ref_logps(dataset, name, batch_size)
        self.gate.done("prepared", pairs=len(dataset))
        return done


def plain(rows: Rows) -> dict[str, Any]:
    """Return what is set for every trainer of TRL on a device."""
    scale = rows.scale
    return {"bf16": scale.device == "cuda", "activation_checkpointing": scale.checkpointing, **PLAIN}


def quiet(rows: Rows) -> dict[str, Any]:
    """Return what has nothing to do with the work."""
    return {"use_cpu": rows.scale.device == "cpu", **QUIET}


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
    told = {**plain(rows), "learning_rate": rate(job), **changes}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Sft(
            model=lm,
            args=SFTConfig(output_dir=folder, max_steps=rows.scale.steps, **told, **quiet(rows)),
            train_dataset=Dataset.from_list([labelled(one) for (one,) in items]),
            processing_class=rows.tokenizer,
        )
        _run(trainer, gate, told, adapter)


def dpo(program: str, rows: Rows, gate: Gate) -> None:
    """Run TRL's DPOTrainer: with its reference model in each step, or with log-probs computed before."""
    items = rows.items("pairwise")
    Dpo.gate = gate
    told = {
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
            args=DPOConfig(output_dir=folder, max_steps=rows.scale.steps, **told, **quiet(rows)),
            train_dataset=_on_disk([compared(item) for item in items], Path(folder)),
            processing_class=rows.tokenizer,
        )
        _run(trainer, gate, told, {})


def _run(trainer: Any, gate: Gate, told: dict[str, Any], adapter: dict[str, Any]) -> None:
    models = [trainer.model, *([trainer.ref_model] if getattr(trainer, "ref_model", None) else [])]
    own_memory(models)
    gate.memory.trains(trainer.model.parameters())
    trainer.add_callback(Turns(trainer, gate, {"settings": told, "adapter": adapter}))
    trainer.train()


def adapters(rows: Rows, gate: Gate) -> None:
    """Train two LoRA adapters of PEFT's in one run: a micro-batch a level, each backward before the next is active."""
    lm = rows.lm()
    control = rows.control(lm, STAGES["lora-two-levels", "ours"][0])
    names = {level: name for level, name in enumerate(control.levels)}
    model = peft.get_peft_model(lm, peft.LoraConfig(**LORA), adapter_name=names[0])
    model.add_adapter(names[1], peft.LoraConfig(**LORA))
    for level, name in names.items():
        peft.set_peft_model_state_dict(model, control.level_state(level), adapter_name=name)
    model.set_requires_grad(list(names.values()), True)
    model.train()
    if rows.scale.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    own_memory([model])
    trained = [p for p in model.parameters() if p.requires_grad]
    gate.memory.trains(trained)
    told = {"learning_rate": rate("lora-two-levels"), "weight_decay": 0.0, "max_grad_norm": 1.0}
    device = rows.scale.device
    optimizer = torch.optim.AdamW(trained, lr=told["learning_rate"], weight_decay=0.0, fused=True)
    items = rows.items("conditional")
    gate.ready(
        "step",
        settings={
            **told,
            "optim": "torch's AdamW, fused",
            "use_cache": False,
            "rows a micro-batch": rows.pairs,
            "gradient_checkpointing": rows.scale.checkpointing,
        },
        adapter=LORA,
    )
    for start in range(0, len(items), rows.pairs):
        taken = items[start : start + rows.pairs]
        total = sum(one.num_trained for item in taken for one in item)
        loss = 0.0
        for level, side in ((1, 0), (0, 1)):  # an item is chosen at good, rejected at bad
            model.set_adapter(names[level])
            model.set_requires_grad(list(names.values()), True)  # set_adapter freezes the other one
            batch = padded([item[side] for item in taken], rows.tokenizer.pad_token_id)
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                part = model(**batch, num_items_in_batch=total, use_cache=False).loss
            part.backward()
            loss += float(part.detach())
        nn.utils.clip_grad_norm_(trained, told["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
        gate.done(loss=loss, tokens=real_tokens(taken))


def generate(rows: Rows, gate: Gate) -> None:
    """Continue all prompts in one batch with ``generate``, again and again."""
    lm = rows.lm().eval()
    own_memory([lm])
    prompts = rows.prompts()
    longest = max(map(len, prompts))
    pad, end = rows.tokenizer.pad_token_id, rows.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    told = {"max_new_tokens": rows.scale.new_tokens, "do_sample": False}
    word = gate.ready("step", settings={**told, "padding": "left"}, adapter={})
    replies: list[list[int]] = []
    while True:
        if word != "go":  # texts of the other program
            word = gate.done(gaps=[tie(lm, rows, *one) for one in zip(prompts, replies, json.loads(word), strict=True)])
            continue
        with torch.no_grad():
            new = lm.generate(input_ids=ids, attention_mask=mask, eos_token_id=end, pad_token_id=pad, **told)
        replies = [until(row, end) for row in new[:, longest:].tolist()]
        word = gate.done(tokens=sum(map(len, replies)), texts=[text_of(rows, one) for one in replies])


def text_of(rows: Rows, ids: list[int]) -> str:
    """Return the text of new ids."""
    return rows.format.text([i for i in ids if i != rows.tokenizer.eos_token_id]).strip()


@torch.no_grad()
def tie(lm: PreTrainedModel, rows: Rows, prompt: tuple[int, ...], reply: list[int], other: str) -> float | None:
    """Return by how much the first token of ``reply`` that leads away from ``other`` beat the second likeliest.

    Args:
        lm: The model.
        rows: Decodes.
        prompt: Ids.
        reply: New ids of the model's.
        other: Another program's text; ``None`` is returned where it is the same.
    """
    if text_of(rows, reply) == other:
        return None
    same = max(n for n in range(len(reply)) if other.startswith(text_of(rows, reply[:n])))
    best = lm(input_ids=torch.tensor([[*prompt, *reply[:same]]]), logits_to_keep=1).logits[0, -1].topk(2).values
    return float(best[0] - best[1])


def adapted(lm: PreTrainedModel, config: peft.PeftConfig, control: Control) -> peft.PeftModel:
    """Return the model with an adapter of PEFT's that starts where ours starts."""
    model = peft.get_peft_model(lm, config)
    peft.set_peft_model_state_dict(model, control.level_state(0))
    return model


def labelled(one: Encoded) -> dict[str, list[int]]:
    """Return a row of SFTTrainer's: ids, and labels where the completion stands."""
    (span,) = one.spans
    return {"input_ids": list(one.ids), "labels": [IGNORE] * span.start + list(one.ids[span.start :])}


def compared(item: Item) -> dict[str, list[int]]:
    """Return a row of DPOTrainer's."""
    chosen, rejected = item
    start = chosen.spans[0].start
    return {
        "prompt_ids": list(chosen.ids[:start]),
        "chosen_ids": list(chosen.ids[start:]),
        "rejected_ids": list(rejected.ids[start:]),
    }


def padded(sequences: Sequence[Encoded], pad: int) -> dict[str, torch.Tensor]:
    """Return a batch as transformers' collators make it: padded on the right."""
    rows = [labelled(one) for one in sequences]
    stack = partial(pad_sequence, batch_first=True)
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return {
        "input_ids": stack(ids, padding_value=pad),
        "attention_mask": stack([torch.ones_like(row) for row in ids]),
        "labels": stack([torch.tensor(row["labels"]) for row in rows], padding_value=IGNORE),
    }


def until(row: list[int], end: int) -> list[int]:
    """Return ids up to and with the first that ends a reply."""
    return row[: row.index(end) + 1] if end in row else row


def _on_disk(rows: list[dict[str, list[int]]], folder: Path) -> Dataset:
    """Return a data set with a folder to cache in: TRL keeps reference log-probs beside it."""
    Dataset.from_list(rows).save_to_disk(folder / "rows")
    return Dataset.load_from_disk(folder / "rows")
