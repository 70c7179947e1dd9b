"""Objectives by hand, and DPO in the training loop: its divisor, its logs, its effect."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from meetlm.data.formats import FORMATS, Item
from meetlm.objectives.base import OBJECTIVES
from meetlm.objectives.dpo import DPOSettings, dpo
from meetlm.objectives.nll import NLLSettings, nll
from meetlm.policy.policy import Policy
from meetlm.training.loop import Collator, StageTrainer
from meetlm.training.run_stage import run_stage
from meetlm.training.stage import BatchSettings, OptimSettings
from test_training import metrics, tensors
from tiny import encoder_of, pairs, stage, tiny_policy

DPO = {"kind": "dpo", "beta": 0.1}
NAMES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")


def test_nll_by_hand() -> None:
    logps = torch.tensor([-1.5, -2.25, -0.25], requires_grad=True)
    loss = nll(logps, torch.zeros(3))
    loss.total.backward()
    assert (loss.total.item(), loss.sums) == (4.0, {})
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1, -1, -1]


def test_dpo_by_hand() -> None:
    """Two pairs, β = ½: margins of the rewards 1 and −1¼, so −ln σ is 0.3132617 and 1.5019293."""
    logps = torch.tensor([-10.0, -12.0, -7.0, -5.0], requires_grad=True)
    reference = torch.tensor([-11.0, -11.0, -6.0, -6.5], dtype=torch.float64)
    loss = dpo(logps, reference, beta=0.5)
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0.3132617 + 1.5019293, abs=1e-6)
    assert {name: value.item() for name, value in loss.sums.items()} == {
        "rewards/chosen": 0.5 - 0.5,
        "rewards/rejected": -0.5 + 0.75,
        "rewards/margins": 1.0 - 1.25,
        "rewards/accuracies": 1.0,
    }
    assert not any(value.requires_grad for value in loss.sums.values())
    assert logps.grad is not None  # −β σ(−margin) on the chosen, which is to rise, and its opposite on the rejected
    wrong, very_wrong = 0.5 * 0.2689414, 0.5 * 0.7772999
    assert logps.grad.tolist() == pytest.approx([-wrong, wrong, -very_wrong, very_wrong], abs=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
def test_dpo_is_ln_2_if_the_policy_is_the_reference(beta: float) -> None:
    logps = torch.tensor([-3.0, -300.0, -20.0, -1.0, -7.5, -7.5])
    loss = dpo(logps, logps.double(), beta=beta)
    assert loss.total.item() == pytest.approx(3 * math.log(2), abs=1e-6)
    assert [loss.sums[name].item() for name in NAMES] == [0, 0, 0, 0]  # a tie is not accurate


def test_dpo_far_from_its_reference_stays_finite() -> None:
    logps = torch.tensor([-1e4, 0.0], requires_grad=True)
    loss = dpo(logps, torch.tensor([0.0, -1e4]), beta=1.0).total
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logps.grad is not None
    assert logps.grad.tolist() == [-1, 1]


def test_objectives_of_settings() -> None:
    assert [(name, OBJECTIVES[name].is_pairwise) for name in OBJECTIVES] == [("dpo", True), ("nll", False)]
    logps, reference = torch.tensor([-10.0, -12.0]), torch.tensor([-11.0, -11.0])
    built = OBJECTIVES["dpo"].build(DPOSettings(beta=0.5))(logps, reference)
    assert built.total.item() == pytest.approx(0.3132617, abs=1e-6)
    assert OBJECTIVES["nll"].build(NLLSettings())(logps, None).total.item() == 22
    assert DPOSettings().beta == 0.1
    with pytest.raises(ValidationError, match="beta"):
        DPOSettings(beta=0.0)
    with pytest.raises(AssertionError, match="requires the log-probs of a reference"):
        built = OBJECTIVES["dpo"].build(DPOSettings())(logps, None)


def pairwise(policy: Policy, count: int) -> list[Item]:
    encoder = encoder_of(policy)
    return [FORMATS["pairwise"].item(encoder, example) for example in pairs(count)]


def logps_of(policy: Policy, items: list[Item]) -> Tensor:
    """[items, 2]."""
    return policy.score([sequence for item in items for sequence in item])[0].view(len(items), 2)


def run(
    policy: Policy, items: list[Item], folder: Path, reference: Tensor, *, steps: int, lr: float, micro: int = 4
) -> list[dict[str, float]]:
    """Train with DPO, 8 pairs a step; return the lines of the log."""
    settings = stage(["lm"], steps=steps, lr=lr, format="pairwise", objective=DPO)
    batch = BatchSettings(pairs=8, micro_pairs=micro)
    optim = OptimSettings(warmup=0.0)
    run_stage(policy, items, settings, optim, batch, folder, seed=0, reference=reference)
    return metrics(folder)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neo", "gptj"])
def test_dpo_is_the_same_with_accumulation(architecture: str, tmp_path: Path) -> None:
    """8 pairs and 8 × 1 pair give the same step, also for the smaller step at the end of an epoch of 10 pairs."""
    results, lines = [], []
    for micro in (8, 1):
        policy = tiny_policy(architecture, "none", levels=["good"])
        items = pairwise(policy, 10)
        reference = logps_of(policy, items)
        lines.append(run(policy, items, tmp_path / str(micro), reference, steps=4, lr=1e-3, micro=micro))
        results.append(tensors(policy))
    assert max(float((results[0][name] - results[1][name]).abs().max()) for name in results[0]) < 1e-6
    for whole, parts in zip(*lines, strict=True):
        for name in ("loss", "grad_norm", *NAMES):
            assert whole[name] == pytest.approx(parts[name], abs=1e-4), name
    assert "loss/good" not in lines[0][0]  # chosen and rejected are both at good: their mean has no meaning
    assert lines[0][0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert lines[0][-1]["rewards/margins"] > 0.01


@pytest.mark.parametrize("micro", [4, 1])
def test_logs_are_means_over_the_pairs_of_a_step(micro: int, tmp_path: Path) -> None:
    """With a learning rate of almost 0, logged values follow from log-probs by the formula."""
    policy = tiny_policy("llama", "none", levels=["good"])
    items = pairwise(policy, 10)
    now = logps_of(policy, items)
    reference = now - torch.linspace(-20, 30, 20, dtype=torch.float64).view(10, 2).flip(0) * torch.tensor([1.0, -1.0])
    first, second = run(policy, items, tmp_path, reference, steps=2, lr=1e-12, micro=micro)
    rewards = 0.1 * (now - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    assert 0 < int((margins > 0).sum()) < 10
    order = order_of(policy, items, tmp_path / "again", reference)
    for line, step in ((first, order[:8]), (second, order[8:])):
        expected = {
            "loss": (1 + (-margins[step]).exp()).log(),
            "rewards/chosen": rewards[step, 0],
            "rewards/rejected": rewards[step, 1],
            "rewards/margins": margins[step],
            "rewards/accuracies": (margins[step] > 0).double(),
        }
        for name, values in expected.items():
            assert line[name] == pytest.approx(float(values.mean()), abs=1e-4), name


def order_of(policy: Policy, items: list[Item], folder: Path, reference: Tensor) -> list[int]:
    """Return the order of an epoch's pairs, identified by the reference of each pair."""
    settings = stage(["lm"], steps=2, format="pairwise", objective=DPO)
    batch = BatchSettings(pairs=8, micro_pairs=1)
    loop = StageTrainer(policy, items, settings, OptimSettings(), batch, folder, 0, [], reference)
    rows = reference.tolist()
    return [rows.index(batch["reference"].tolist()) for batch in loop.get_train_dataloader()]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_batch_of_pairs_counts_pairs(layout: str) -> None:
    policy = tiny_policy("llama", "none", levels=["good"])
    items = pairwise(policy, 3)
    reference = torch.arange(6, dtype=torch.float64).view(3, 2)
    batch = Collator(layout, is_pairwise=True)(list(zip(items, reference, strict=True)))  # type: ignore[arg-type]
    assert (len(batch["labels"]), int((batch["labels"] != -100).sum())) == (3, 3)
    assert batch["reference"].tolist() == [0, 1, 2, 3, 4, 5]
    logps = policy(batch["blocks"], batch["num_completions"]).sums().detach()
    assert torch.allclose(logps.double().view(3, 2), logps_of(policy, items), atol=1e-4)


def test_a_dpo_stage_raises_the_margin_of_its_pairs(tmp_path: Path) -> None:
    policy = tiny_policy("llama", "none", levels=["good"], dtype=torch.float32)
    items = pairwise(policy, 8)
    before = logps_of(policy, items)
    lines = run(policy, items, tmp_path, before, steps=30, lr=1e-3)
    gained = (logps_of(policy, items) - before) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert float(gained.min()) > 1
    assert abs(lines[0]["rewards/margins"]) < 1e-4
    assert lines[-1]["rewards/accuracies"] == 1
    assert lines[-1]["rewards/margins"] > 0.1
    assert lines[-1]["loss"] < math.log(2) - 0.05


def test_only_pairwise_objectives_have_a_reference(tmp_path: Path) -> None:
    policy = tiny_policy("llama", "none", levels=["good"])
    items, batch = pairwise(policy, 2), BatchSettings(pairs=2)
    for settings, reference in (
        (stage(["lm"], format="pairwise", objective=DPO), None),
        (stage(["lm"], format="chosen"), torch.zeros(2, 2)),
    ):
        with pytest.raises(AssertionError, match="pairwise objectives have a reference"):
            run_stage(policy, items, settings, OptimSettings(), batch, tmp_path, seed=0, reference=reference)
