"""The training loop: which parameters change, accumulation, normalisation, precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import TrainerCallback

from combinations import each_value
from meetlm.config.errors import ConfigError, DivergedError
from meetlm.config.world import World
from meetlm.data.batch import Batch, collate
from meetlm.data.encoding import Encoded
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import ModelSettings, load_lm
from meetlm.policy.policy import Policy
from meetlm.training.checkpoints import checkpoints, load_trained
from meetlm.training.loop import Collator, StageTrainer
from meetlm.training.order import PassSampler, dropout_seed, optimizer_steps
from meetlm.training.run_stage import run_stage, set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings
from tiny import (
    ARCHITECTURES,
    LENGTHS,
    TRAINED,
    gradients,
    items_of,
    sequences,
    stage,
    tiny_lm,
    tiny_policy,
    tiny_tokenizer,
    trainer,
)

Items = list[tuple[Encoded, Encoded]]


def tensors(policy: Policy) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@each_value(architecture=ARCHITECTURES, kind=TRAINED)
def test_step_one_changes_every_level_and_nothing_else(architecture: str, kind: str, tmp_path: Path) -> None:
    policy = tiny_policy(architecture, kind, move=0.0, dtype=torch.float32)
    before, plain = tensors(policy), sha256_of(policy.lm)
    result = run_stage(
        policy,
        items_of(policy),
        stage(["control"]),
        OptimSettings(),
        BatchSettings(pairs=4),
        tmp_path,
        seed=0,
    )
    after = tensors(policy)
    assert result.lm_sha256 == plain == sha256_of(policy.lm)
    assert result.steps == 3
    for name, tensor in before.items():
        if name.startswith("lm."):
            assert torch.equal(tensor, after[name]), name
        else:
            for level in range(len(policy.control.levels)):
                assert not torch.equal(tensor[level], after[name][level]), (name, level)
    assert result.trained_parameters == sum(p.numel() for p in policy.control.parameters())


@pytest.mark.parametrize("kind", TRAINED)
def test_step_two_changes_everything(kind: str, tmp_path: Path) -> None:
    policy = tiny_policy("llama", kind, move=0.0, dtype=torch.float32)
    before = tensors(policy)
    trainer(policy, items_of(policy), tmp_path, stage(["control", "lm"])).train()
    still = [name for name, tensor in tensors(policy).items() if torch.equal(tensor, before[name])]
    assert still == []


def test_a_stage_that_changes_the_frozen_model_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "lora", dtype=torch.float32)
    right = StageTrainer.train

    def train(self: StageTrainer, **kwargs: object) -> object:
        with torch.no_grad():
            policy.lm.lm_head.weight[0, 0] += 1e-3
        return right(self, **kwargs)

    monkeypatch.setattr(StageTrainer, "train", train)
    settings, batch = stage(["control"], steps=1), BatchSettings(pairs=4)
    with pytest.raises(AssertionError, match="changed the language model"):
        run_stage(policy, items_of(policy), settings, OptimSettings(), batch, tmp_path, seed=0)


@each_value(architecture=("llama", "gpt-neo", "gptj"), kind=("lora", "soft-prompt"))
def test_accumulation_changes_nothing(architecture: str, kind: str, tmp_path: Path) -> None:
    results = []
    for micro in (8, 1):
        policy = tiny_policy(architecture, kind, move=0.05)
        run = trainer(
            policy,
            items_of(policy, 24),
            tmp_path / str(micro),
            stage(["control", "lm"], lr=1e-3),
            pairs=8,
            micro=micro,
        )
        assert run.args.gradient_accumulation_steps == 8 // micro
        run.train()
        results.append(tensors(policy))
    moved = max(float((results[0][name] - results[1][name]).abs().max()) for name in results[0])
    assert moved < 1e-6
    whole, parts = (metrics(tmp_path / str(micro)) for micro in (8, 1))
    for first, second in zip(whole, parts, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first["loss/good"] == pytest.approx(second["loss/good"], abs=1e-5)
        assert first["input_tokens"] == second["input_tokens"]


def test_the_gradient_is_that_of_the_mean_over_trained_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step over four pairs of very different lengths, one pair per forward pass, compared with plain torch."""
    policy = tiny_policy("llama", "lora")
    items = items_of(policy, 4)
    flat = [sequence for item in items for sequence in item]
    assert max(s.num_trained for s in flat) >= 3 * min(s.num_trained for s in flat)
    collated = collate(flat, "padded")
    loss = -policy(collated["blocks"], len(flat)).values.sum() / sum(s.num_trained for s in flat)
    loss.backward()
    expected = gradients(policy)

    seen: dict[str, Tensor] = {}
    run = trainer(policy, items, tmp_path, stage(["control", "lm"], steps=1), pairs=4, micro=1, max_grad_norm=1e9)
    optimizer = run.create_optimizer()
    right = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda *a, **k: (seen.update(gradients_of(policy)), right(*a, **k))[1])
    run.train()
    assert metrics(tmp_path)[0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    largest = max(float(t.abs().max()) for t in expected.values())
    assert max(float((expected[n] - seen[n]).abs().max()) for n in expected) / largest < 1e-6


def gradients_of(policy: Policy) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_loss_by_level(tmp_path: Path) -> None:
    policy = tiny_policy("llama", "soft-prompt")
    items = items_of(policy, 4)
    sums, counts = policy.score([sequence for item in items for sequence in item])
    run = trainer(policy, items, tmp_path, stage(steps=2, lr=1e-12), pairs=2, micro=1)  # a rate that moves nothing
    order = [number(items, batch) for batch in run.get_train_dataloader()]
    run.train()
    for line, step in zip(metrics(tmp_path), (order[:2], order[2:]), strict=True):
        for name, side in (("good", 0), ("bad", 1)):
            rows = [2 * i + side for i in step]
            assert line[f"loss/{name}"] == pytest.approx(float(-sums[rows].sum() / counts[rows].sum()), abs=1e-5)
        assert line["input_tokens"] == sum(len(s.ids) for i in step for s in items[i])


def number(items: Items, batch: Batch) -> int:
    """Return the index of the item that a batch consists of."""
    ids = batch["blocks"][0]["input_ids"][0].tolist()
    return [[*chosen.ids, *rejected.ids] for chosen, rejected in items].index(ids)


def test_both_replies_of_a_pair_are_in_one_forward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy("llama", "lora")
    items = items_of(policy, 6)
    seen: list[list[int]] = []
    right = Policy.forward

    def forward(self: Policy, blocks: list[dict[str, Tensor]], num_completions: int) -> object:
        (block,) = blocks
        bounds = block["cu_seq_lens"].tolist()
        ids = block["input_ids"][0].tolist()
        rows = [tuple(ids[a:b]) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        levels = block["level_weights"][0, bounds[:-1]].argmax(-1).tolist()
        assert levels == [1, 0] * (num_completions // 2)  # chosen at good, rejected at bad
        known = {(chosen.ids, rejected.ids): number for number, (chosen, rejected) in enumerate(items)}
        seen.append([known[pair] for pair in zip(rows[::2], rows[1::2], strict=True)])
        return right(self, blocks, num_completions)

    monkeypatch.setattr(Policy, "forward", forward)
    trainer(policy, items, tmp_path, stage(steps=3), pairs=2, micro=1).train()
    assert [len(step) for step in seen] == [1] * 6
    assert sorted(number for step in seen for number in step) == list(range(6))


def test_collator_keeps_the_order() -> None:
    policy = tiny_policy("llama", "text")
    items = items_of(policy, 3)
    batch = Collator("packed")([(item, None) for item in items])
    flat = [i for item in items for sequence in item for i in sequence.ids]
    assert batch["blocks"][0]["input_ids"][0].tolist() == flat
    assert batch["num_completions"] == 6
    assert batch["weights"].tolist() == [[0, 1], [1, 0]] * 3


def test_order_is_the_same_for_every_control(tmp_path: Path) -> None:
    seen = {}
    for kind in ("lora", "soft-prompt"):
        policy = tiny_policy("llama", kind)
        slot = len(policy.control.slots[0])
        run = trainer(policy, items_of(policy, 16), tmp_path / kind, stage(steps=2), seed=3)
        blocks = [batch["blocks"][0] for batch in run.get_train_dataloader()]
        rows = [[i for i in b["input_ids"][0].tolist() if i < policy.lm.config.vocab_size] for b in blocks]
        seen[kind] = rows, [(b["cu_seq_lens"].diff() - slot).tolist() for b in blocks]
    assert seen["lora"] == seen["soft-prompt"]


def test_learning_rates_and_weight_decay_by_group(tmp_path: Path) -> None:
    policy = tiny_policy("gpt2", "lora")
    settings = StageSettings(name="s", train=("control", "lm"), lr=2e-5, control_lr=1e-3)
    groups = trainer(policy, items_of(policy), tmp_path, settings, weight_decay=0.1).create_optimizer().param_groups
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(2e-5, 0.1), (1e-3, 0.0)]
    assert sum(len(g["params"]) for g in groups) == len(list(policy.parameters()))
    alone = trainer(policy, items_of(policy), tmp_path, stage(["control"]), weight_decay=0.1).create_optimizer()
    assert [len(g["params"]) for g in alone.param_groups] == [len(list(policy.control.parameters()))]


def test_a_stage_must_train_something() -> None:
    policy = tiny_policy("llama", "text")
    with pytest.raises(ConfigError, match="stage 'stage' trains nothing.*'text'"):
        set_trainable(policy, stage(["control"]))


@pytest.mark.parametrize(
    ("epochs", "min_steps", "count", "size", "steps"),
    [(5, 0, 64, 64, 5), (5, 0, 65, 64, 10), (0.5, 0, 640, 64, 5), (1, 100, 80, 8, 100), (1e-6, 0, 8, 8, 1)],
)
def test_number_of_optimizer_steps(epochs: float, min_steps: int, count: int, size: int, steps: int) -> None:
    settings = StageSettings(name="s", train=("lm",), lr=1.0, epochs=epochs, min_steps=min_steps)
    assert settings.num_steps(count, size) == steps


@pytest.mark.parametrize(("size", "most", "micro", "parts"), [(64, 8, 8, 8), (12, 8, 6, 2), (7, 4, 1, 7), (4, 8, 4, 1)])
def test_forward_passes_per_step(size: int, most: int, micro: int, parts: int) -> None:
    batch = BatchSettings(pairs=size, micro_pairs=most)
    assert (batch.micro, batch.accumulation) == (micro, parts)
    assert batch.micro * batch.accumulation == size


def test_dropout_is_on_in_training_only() -> None:
    lm = tiny_lm("gpt2", attn_pdrop=0.3, resid_pdrop=0.3)
    policy = tiny_policy("gpt2", "lora", lm=lm)
    batch = sequences(policy, LENGTHS)
    blocks = collate(batch, policy.layout)["blocks"]
    assert torch.equal(policy.score(batch)[0], policy.score(batch)[0])
    policy.train()
    with torch.no_grad():
        assert not torch.equal(policy(blocks, len(batch)).values, policy(blocks, len(batch)).values)
    score = policy.score(batch)[0]
    assert policy.training
    policy.eval()
    assert torch.equal(score, policy.score(batch)[0])


def changed(policy: Policy, tmp_path: Path, *, autocast: bool) -> float:
    """Return the share of the language model's weights that one update of 2e-5 changes."""
    before = tensors(policy)
    settings = stage(["lm"], steps=1, lr=2e-5)
    run = trainer(policy, items_of(policy), tmp_path, settings, warmup=0.0, schedule="constant")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        run.train()
    # Rows of tokens that do not occur have no gradient, whatever the precision.
    after = {name: p for name, p in tensors(policy).items() if name.startswith("lm.") and "embed" not in name}
    return sum(int((before[n] != p).sum()) for n, p in after.items()) / sum(p.numel() for p in after.values())


def test_an_update_of_2e_5_is_lost_in_bf16_but_not_in_f32(tmp_path: Path) -> None:
    pure = tiny_policy("llama", "lora", dtype=torch.bfloat16)
    assert changed(pure, tmp_path / "bf16", autocast=False) < 0.05
    master = tiny_policy("llama", "lora", dtype=torch.float32)
    assert changed(master, tmp_path / "f32", autocast=True) > 0.9
    assert all(p.dtype == torch.float32 for p in master.parameters())


def test_weights_are_loaded_as_f32_whatever_the_file_holds(tmp_path: Path) -> None:
    tiny_lm("llama", dtype=torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    lm, _ = load_lm(ModelSettings(name=str(tmp_path), gradient_checkpointing=True))
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
    assert lm.is_activation_checkpointing
    assert not lm.training
    with pytest.raises(ConfigError, match="no such folder"):
        load_lm(ModelSettings(name=str(tmp_path / "nothing")))


def test_few_steps_give_a_warning() -> None:
    short = stage(["control"], steps=1)
    assert "1 optimizer steps for 8 examples; fewer than 50" in (short.few_steps_warning(8, 8) or "")
    assert stage(["control"], steps=50).few_steps_warning(8, 8) is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "model"}, "a stage cannot have the name"),
        ({"name": "../x"}, "a stage cannot have the name"),
        ({"objective": {"kind": "nil"}}, "unknown objective 'nil'; did you mean 'nll'"),
        ({"objective": "nll"}, "objective: expected a mapping with 'kind', one of dpo, nll"),
        ({"control_lr": 1.0}, "control_lr requires train"),
        ({"format": "chosn"}, "unknown data format 'chosn'; did you mean 'chosen'"),
        ({"objective": {"kind": "dpo"}}, "compares two replies .* format: pairwise"),
        ({"format": "pairwise"}, "train the rejected reply like the chosen one"),
        ({"train": []}, "at least 1 item"),
    ],
)
def test_stages_that_cannot_be_run_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StageSettings.model_validate({"name": "step1", "train": ["control"], "lr": 1e-3, **fields})


def test_an_unknown_scheduler_is_refused() -> None:
    with pytest.raises(ValidationError, match="unknown scheduler 'linaer'; did you mean 'linear'"):
        OptimSettings(schedule="linaer")


def test_diverging_training_stops_before_the_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    policy = tiny_policy("llama", "lora", move=0.0, dtype=torch.float32)

    class Break(TrainerCallback):
        def on_step_begin(self, args: object, state: object, control: object, **kwargs: object) -> None:
            if state.global_step == 2:  # type: ignore[attr-defined]
                with torch.no_grad():
                    next(policy.control.parameters()).fill_(torch.inf)

    trained = trainer(policy, items_of(policy), tmp_path, stage(steps=4), save_steps=1)
    trained.add_callback(Break())
    with pytest.raises(DivergedError, match="'stage' has diverged: the gradients of step 3 have norm nan"):
        trained.train()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2]
    (checkpoint,) = checkpoints(tmp_path)
    assert checkpoint.name == "checkpoint-2"
    load_trained(policy, checkpoint)
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(policy).values())


def test_neighbouring_seeds_have_no_order_in_common() -> None:
    batch, passes = BatchSettings(pairs=6, micro_pairs=6), StageSettings(name="x", train=("lm",), lr=1.0, epochs=5)
    orders = []
    for seed in range(4):
        steps = [step[0] for step in optimizer_steps(12, passes, batch, seed)]
        orders += [tuple(steps[2 * epoch] + steps[2 * epoch + 1]) for epoch in range(5)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 4 * 5


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize(("count", "pairs"), [(16, 8), (13, 4), (3, 4), (21, 12)])
def test_every_example_is_in_the_same_step_for_any_number_of_processes(count: int, pairs: int, micro: int) -> None:
    batch = BatchSettings(pairs=pairs, micro_pairs=micro)

    def steps(size: int) -> list[list[int]]:
        """Return the sorted examples of each step, over three epochs."""
        samplers = [PassSampler(count, batch, 5, World(rank, size)) for rank in range(size)]
        accumulation, result = batch.of_process(World(0, size)).accumulation, []
        for epoch in range(3):
            for sampler in samplers:
                sampler.set_epoch(epoch)
            passes = list(zip(*map(list, samplers), strict=True))
            assert len(passes) == len(samplers[0])
            assert all(len(part) <= micro for forward in passes for part in forward)
            for start in range(0, len(passes), accumulation):
                step = passes[start : start + accumulation]
                result.append(sorted(index for forward in step for part in forward for index in part))
        return result

    assert steps(1) == steps(2) == steps(4)
    assert sum(map(len, steps(1))) == 3 * count


def test_processes_have_different_dropout() -> None:
    seeds = [dropout_seed(seed, World(rank, 64)) for seed in range(32) for rank in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert dropout_seed(7, World()) == 7
    assert all(0 <= dropout_seed(2**32 - 1, World(rank, 64)) < 2**32 for rank in range(64))
