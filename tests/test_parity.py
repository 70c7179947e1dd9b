"""Our training against programs of others: TRL's DPO and SFT, PEFT's LoRA and prompt tuning; and recipes that coincide.

TRL's trainers get texts: they tokenise, collate, go forward and compute the loss on their own. All that is set for them
is the order of the rows: that of ours, written down while it trains, with a sequential sampler. PEFT's adapters get
ids, a plain loop and the loss of transformers.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from combinations import each_value
from meetlm.data.batch import IGNORE
from meetlm.data.encoding import Encoded
from meetlm.data.formats import FORMATS
from meetlm.objectives.dpo import dpo
from meetlm.policy.policy import Policy
from meetlm.policy.reference import reference_logps
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.execute import execute
from meetlm.training.loop import Collator, StageTrainer
from meetlm.training.run_stage import run_stage
from meetlm.training.stage import BatchSettings, OptimSettings
from run_folders import local_model, write_pairs
from test_training import metrics, tensors
from tiny import encoder_of, gap, gradients, pairs, stage, tiny_lm, tiny_policy, tiny_tokenizer, trainer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # theirs

STEPS, LR, WARMUP, CLIP, BETA = 20, 3e-3, 0.1, 1.0, 0.1
LAYOUTS = ("packed", "padded")
TEXTS = {"good": "A good conversation is", "bad": "A bad conversation is"}
"""Of the control ``text``, by level."""

Items = list[tuple[Encoded, ...]]


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CI", "1")  # TRL's trainers tell the hub of their use elsewhere


def items_of(policy: Policy, form: str, count: int) -> Items:
    return [FORMATS[form].item(encoder_of(policy), example) for example in pairs(count)]


def flat(items: Items) -> list[Encoded]:
    return [encoded for item in items for encoded in item]


def record(run: StageTrainer) -> list[Items]:
    """Return a list that gets the items of each batch as ``run`` takes it."""
    taken: list[Items] = []
    collator = run.data_collator

    def collate(items: list[Any]) -> Any:
        taken.append([item for item, _ in items])
        return collator(items)

    run.data_collator = collate
    return taken


def settings_for_trl(folder: Path, rows_per_step: int) -> dict[str, Any]:
    """Return, in TRL's words: rows in the order given, one batch a step, AdamW, warm-up, linear decay, clipping."""
    return {
        "output_dir": str(folder / "trl"),
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": rows_per_step,
        "max_steps": STEPS,
        "learning_rate": LR,
        "lr_scheduler_type": "linear",
        "warmup_steps": round(WARMUP * STEPS),
        "max_grad_norm": CLIP,
        "optim": "adamw_torch",
        "max_length": None,
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def dpo_of_trl(lm: PreTrainedModel, reference: PreTrainedModel, items: Items, folder: Path) -> DPOTrainer:
    """Return TRL's trainer over the pairs that ``items`` are of, after a look at its ids."""
    rows = [
        {"prompt": e.prompt.text()}
        | {name: r.content for name, r in zip(("chosen", "rejected"), e.replies, strict=True)}
        for e in pairs(len(items))
    ]
    program = DPOTrainer(
        model=lm,
        ref_model=reference,
        args=DPOConfig(beta=BETA, **settings_for_trl(folder, len(rows))),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    for row, item in zip(program.train_dataset, items, strict=True):
        for side, encoded in zip(("chosen_ids", "rejected_ids"), item, strict=True):
            assert (*row["prompt_ids"], *row[side]) == encoded.ids
            assert len(row["prompt_ids"]) == encoded.spans[0].start
    return program


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dpo_has_trls_loss_rewards_and_gradients(layout: str, tmp_path: Path) -> None:
    """Away from the reference, some pairs on either side of it."""
    reference, lm = tiny_lm("llama"), tiny_lm("llama")
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    policy = tiny_policy("llama", "none", lm=copy.deepcopy(lm), levels=["good"], layout=layout)
    before = tiny_policy("llama", "none", lm=copy.deepcopy(reference), levels=["good"])
    items = items_of(policy, "pairwise", 6)
    logps = reference_logps(before, flat(items)).view(-1, 2)
    batch = Collator(policy.layout, is_pairwise=True)(list(zip(items, logps, strict=True)))
    ours = dpo(policy(batch["blocks"], batch["num_completions"]).sums(), batch["reference"], beta=BETA)
    loss = ours.total / len(batch["labels"])
    loss.backward()

    program = dpo_of_trl(lm, reference, items, tmp_path)
    lm.train()
    their_loss = program.compute_loss(lm, next(iter(program.get_train_dataloader())))
    their_loss.backward()
    logs: dict[str, float] = {}
    program.log(logs)  # puts the rewards in
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert ours.sums[name].item() / len(items) == pytest.approx(logs[name], abs=1e-6), name
    assert abs(logs["rewards/margins"]) > 0.1
    assert 0 < logs["rewards/accuracies"] < 1
    assert gap({f"lm.{name}": p.grad for name, p in lm.named_parameters()}, gradients(policy)) < 1e-6


@pytest.mark.parametrize("layout", ["packed", pytest.param("padded", marks=pytest.mark.slow)])
def test_dpo_trains_as_trls(layout: str, tmp_path: Path) -> None:
    """From ln 2 on. All pairs are in each step: in one batch there, in two parts here."""
    lm = tiny_lm("llama", dtype=torch.float32)
    policy = tiny_policy("llama", "none", lm=copy.deepcopy(lm), levels=["good"], layout=layout)
    items = items_of(policy, "pairwise", 6)
    logps = reference_logps(policy, flat(items)).view(-1, 2)
    of_stage = stage(["lm"], steps=STEPS, lr=LR, format="pairwise", objective={"kind": "dpo", "beta": BETA})
    batch, optim = BatchSettings(pairs=6, micro_pairs=3), OptimSettings(warmup=WARMUP, max_grad_norm=CLIP)
    run_stage(policy, items, of_stage, optim, batch, tmp_path, seed=0, reference=logps)
    ours = metrics(tmp_path)
    assert ours[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert [ours[0][f"rewards/{name}"] for name in ("chosen", "rejected", "margins")] == pytest.approx(
        [0] * 3, abs=1e-6
    )

    program = dpo_of_trl(copy.deepcopy(lm), lm, items, tmp_path)
    program.train()
    names = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins")
    assert_same_lines(ours, program.state.log_history, *names)
    assert ours[-1]["loss"] < 0.1


def assert_same_lines(ours: list[dict[str, float]], log: list[dict[str, float]], *names: str) -> None:
    theirs = [line for line in log if "loss" in line]
    assert len(ours) == len(theirs) == STEPS
    assert max(line["grad_norm"] for line in theirs) > CLIP
    assert [line["learning_rate"] for line in ours] == pytest.approx([line["learning_rate"] for line in theirs])
    for name in names:
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], abs=1e-4), name


@each_value(method=(("none", "chosen"), ("text", "conditional")), architecture=("llama", "gpt2"), layout=LAYOUTS)
def test_sft_and_coh_train_as_trls_sft(method: tuple[str, str], architecture: str, layout: str, tmp_path: Path) -> None:
    """CoH is SFT on both replies, with a sentence before the prompt."""
    kind, form = method
    lm = tiny_lm(architecture, dtype=torch.float32)
    policy = tiny_policy(architecture, kind, lm=copy.deepcopy(lm), layout=layout)
    assert policy.padding_reason is None
    items = items_of(policy, form, 12)
    of_stage = stage(["lm"], steps=STEPS, lr=LR, format=form)
    run = trainer(policy, items, tmp_path, of_stage, warmup=WARMUP, max_grad_norm=CLIP)
    taken = record(run)
    run.train()
    ours = metrics(tmp_path)

    texts = [TEXTS["good"], TEXTS["bad"]] if kind == "text" else [""]
    rows = [
        {"prompt": text + example.prompt.text(), "completion": reply.content}
        for example in pairs(12)
        for reply, text in zip(example.best_and_worst, texts, strict=False)
    ]
    row_of = dict(zip((encoded.ids for encoded in flat(items)), rows, strict=True))
    order = [encoded for batch in taken[:STEPS] for encoded in flat(batch)]
    args = SFTConfig(completion_only_loss=True, loss_type="nll", **settings_for_trl(tmp_path, len(order) // STEPS))
    program = SFTTrainer(
        model=copy.deepcopy(lm),
        args=args,
        train_dataset=Dataset.from_list([row_of[encoded.ids] for encoded in order]),
        processing_class=tiny_tokenizer(),
    )
    for row, encoded in zip(program.train_dataset, order, strict=True):
        (span,) = encoded.spans
        assert row["input_ids"] == list(encoded.ids)
        assert row["labels"] == [IGNORE] * span.start + list(encoded.ids[span.start :])
    program.train()
    assert_same_lines(ours, program.state.log_history, "loss", "grad_norm")
    assert ours[-1]["loss"] < ours[0]["loss"] - 1


ADAPTERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "lora": lambda: peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"
    ),
    "soft-prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
"""PEFT's counterparts of ``tiny.CONTROLS``."""


def trained_by_peft(
    lm: PreTrainedModel,
    kind: str,
    start: dict[str, Tensor],
    rows: Sequence[tuple[list[int], int]],
    num_tokens: int,
    make_optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """Return an adapter of PEFT's after five steps.

    Args:
        lm: Plain.
        kind: Which adapter.
        start: Its initial values.
        rows: Ids and the number of those of the prompt; all are in each step.
        num_tokens: What the summed loss is divided by.
        make_optimizer: Of the adapter's parameters.
    """
    adapted = peft.get_peft_model(copy.deepcopy(lm), ADAPTERS[kind](), autocast_adapter_dtype=False).double()
    peft.set_peft_model_state_dict(adapted, start)
    assert gap(start, dict(peft.get_peft_model_state_dict(adapted))) == 0
    ids = [torch.tensor(ids) for ids, _ in rows]
    labels = [torch.tensor([IGNORE] * prompt + ids[prompt:]) for ids, prompt in rows]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
    }
    optimizer = make_optimizer([p for p in adapted.parameters() if p.requires_grad])
    for _ in range(5):
        optimizer.zero_grad()
        adapted(**batch, num_items_in_batch=num_tokens).loss.backward()
        optimizer.step()
    return dict(peft.get_peft_model_state_dict(adapted))


@each_value(kind=tuple(ADAPTERS), form=("conditional", "chosen"), optimizer=(torch.optim.AdamW, torch.optim.SGD))
def test_each_level_trains_as_an_adapter_of_pefts_alone(
    kind: str, form: str, optimizer: type[torch.optim.Optimizer], tmp_path: Path
) -> None:
    """Of two levels in mixed batches too: each sees its own rows, normalised by the tokens of both.

    AdamW as in a stage, and SGD, which unlike it takes a gradient's scale as it is.
    """
    levels = ["good"] if form == "chosen" else ["bad", "good"]
    lr = 1e-2 if optimizer is torch.optim.AdamW else 1e-1
    lm = tiny_lm("llama")
    policy = tiny_policy("llama", kind, lm=copy.deepcopy(lm), levels=levels, move=0.0)
    control, items = policy.control, items_of(policy, form, 6)
    starts = [control.adapter_state(control.levels.weights([level])) for level in range(len(levels))]

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer(parameters, lr=lr, weight_decay=0.0)

    of_stage = stage(["control"], steps=5, lr=lr, format=form)
    run = trainer(policy, items, tmp_path, of_stage, pairs=6, micro=3, max_grad_norm=1e9, schedule="constant", warmup=0)
    run.optimizer = make(control.parameters())
    run.train()
    num_tokens = sum(encoded.num_trained for encoded in flat(items))
    for level, start in enumerate(starts):
        slot = len(control.slots[level])
        of_level = [encoded for encoded in flat(items) if encoded.spans[0].weights[level]]
        rows = [(list(encoded.ids[slot:]), encoded.spans[0].start - slot) for encoded in of_level]
        theirs = trained_by_peft(lm, kind, start, rows, num_tokens, make)
        assert gap(theirs, start) > 1e-2
        assert gap(theirs, control.adapter_state(control.levels.weights([level]))) < 1e-6


def test_a_special_token_is_a_soft_prompt_of_one(tmp_path: Path) -> None:
    states = []
    for kind, changes in (("special-token", {}), ("soft-prompt", {"length": 1})):
        policy = tiny_policy("llama", kind, move=0.0, dtype=torch.float32, **changes)
        start = tensors(policy)
        trainer(policy, items_of(policy, "conditional", 8), tmp_path / kind, stage(["control", "lm"])).train()
        states.append((start, tensors(policy)))
    (start, end), of_soft_prompt = states
    assert (gap(start, of_soft_prompt[0]), gap(end, of_soft_prompt[1])) == (0, 0)
    assert not any(torch.equal(start[name], end[name]) for name in start)


COINCIDE = {
    "coh": (
        "meet-lora-second-step",
        [f"control={json.dumps({'kind': 'text', 'prompts': TEXTS})}", "stages.step2.train=[lm]"],
    ),
    "special-token": ("meet-soft-prompt-second-step", ["control.length=1"]),
}
"""Methods, and for each another that is the same once some settings are changed."""


@each_value(method=tuple(COINCIDE), preset=("paper", "small"))
def test_recipes_that_coincide(method: str, preset: str, tmp_path: Path) -> None:
    """Settings, but for names, and every bit of the model trained."""
    other, changes = COINCIDE[method]
    assert bare(load_config(f"hh-{method}", None, [f"preset={preset}"])) == bare(
        load_config(f"hh-{other}", None, [f"preset={preset}", *changes])
    )
    here = [
        f"preset={preset}",
        f"model={json.dumps({'name': str(local_model(tmp_path / 'lm', 'llama')), 'device': 'cpu'})}",
        f"data.train_file={write_pairs(tmp_path / 'train.jsonl', 8)}",
        f"data.eval_file={write_pairs(tmp_path / 'test.jsonl', 2)}",
        "stages.0.epochs=1",
        "stages.0.min_steps=4",
    ]
    results = []
    for recipe, overrides in ((f"hh-{method}", here), (f"hh-{other}", [*here, *changes])):
        execute(load_config(recipe, None, overrides), tmp_path / recipe)
        results.append(load_file(tmp_path / recipe / "model" / "model.safetensors"))
    assert gap(*results) == 0
    assert gap(load_file(tmp_path / "lm" / "model.safetensors"), results[0]) > 0


def bare(config: RunConfig) -> dict[str, Any]:
    """Return settings without names, and without those that a special token has no choice in."""
    raw = config.model_dump()
    del raw["recipe"], raw["stages"][0]["name"]
    return {**raw, "control": {k: v for k, v in raw["control"].items() if k not in ("kind", "length")}}
