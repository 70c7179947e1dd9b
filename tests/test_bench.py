"""The arithmetic of the benchmark on small numbers: nothing is timed here, and no real model is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from meetlm.data.batch import collate
from meetlm.policy.loading import checkpoint_activations
from meetlm.policy.policy import Policy
from tiny import sequences, tiny_control, tiny_lm, tiny_policy

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # its files are scripts, not a package

import quiet
import report
from curves import CURVES, Curve, Point
from flops import Flops
from growth import _shrunk
from jobs import (
    ATTENTION,
    CONTROL,
    DATA,
    ELEMENTWISE,
    JOBS,
    OPERATIONS,
    OPTIMIZER,
    OUTSIDE,
    PRODUCTS,
    Job,
    Peer,
    jobs_called,
)
from models import MODELS
from results import Goal, Grown, Profile, Run, compared, differs, goals, growth_ratios, rates, spread
from step_profile import StepProfile, group_of, is_narrow, sorted_time

EMPTY = Run({}, {}, rounds=3, threads=1, scale={}, command=[], failed={})


def step(seconds: float, loss: float = 2.0, tokens: int = 100, above: float = 50.0, **more: float) -> dict[str, float]:
    return {"seconds": seconds, "loss": loss, "tokens": tokens, "above_mb": above, **more}


def told(ours: list[float], theirs: list[float], *, peer: str = "peft-adapters", **changes: Any) -> dict[str, Any]:
    """Return what two programs told whose steps took so long; ours computes 12 operations a step."""
    return {
        "first": {"ours": {}, peer: {"settings": {"learning_rate": 1e-4}, "adapter": {"r": 4}}},
        "reference": {},
        "steps": {"ours": [step(s, flops=12, product_flops=8) for s in ours], peer: [step(s) for s in theirs]},
        "rates": {"small": 8.0, "large": 10.0},
        "others": [0.9, 0.0, 0.1],
        "profile": {"seconds": {**dict.fromkeys(OPERATIONS, 0.1), PRODUCTS: 1.4}, "product_flops": 8},
        "gaps": [],
        **changes,
    }


def run_of(job: str, *pairs: dict[str, Any]) -> Run:
    """Return a run of one job beside its first peers."""
    (one,) = jobs_called([job])
    return replace(EMPTY, told={job: {peer.key: pair for peer, pair in zip(one.peers, pairs, strict=False)}})


@pytest.mark.parametrize(
    ("values", "shown"),
    [([2.0], "2.00"), ([3.0, 1.0, 2.0], "2.00 [1.00, 3.00]"), ([1.0, 2.0], "1.50 [1.00, 2.00]")],
)
def test_a_spread_is_the_median_with_both_ends(values: list[float], shown: str) -> None:
    assert spread(values) == shown


def goal(unit: Any, bound: float, *values: float) -> Goal:
    return Goal("job", unit, "what", bound, list(values), ("job", "ours"))


@pytest.mark.parametrize(
    ("wanted", "miss"),
    [
        (goal("speed", 2.0, 1.0, 2.0, 9.0), ""),
        (goal("speed", 2.0, 1.0, 1.5, 9.0), "25% short"),
        (goal("operations", 0.7, 0.7), ""),
        (goal("memory", 0.6, 0.6), ""),
        (goal("memory", 0.6, 0.9), "50% over"),
        (goal("levels", 1.0, 1.0, 1.2, 1.2), "20% over"),
    ],
)
def test_a_goal_is_met_by_the_median_in_its_own_direction(wanted: Goal, miss: str) -> None:
    assert wanted.miss == miss
    assert wanted.met is (miss == "")


def test_a_ratio_is_taken_in_each_round_but_the_first() -> None:
    run = run_of("lora-two-levels", told([9.0, 1.0, 2.0], [1.0, 4.0, 4.0]))
    (row,) = compared(run)
    assert row.ratios == [4.0, 2.0]
    assert (row.ours, row.theirs) == (75.0, 25.0)
    assert row.same_work
    speed, memory, operations = goals(run)
    assert (speed.unit, speed.values, speed.met) == ("speed", [4.0, 2.0], True)
    assert (memory.unit, memory.values, memory.met) == ("memory", [1.0], False)
    assert (operations.unit, operations.values) == ("operations", [1.2, 0.6])  # 12 a second and 6, over the faster 10


def test_the_best_setting_of_a_peer_is_the_one_nearest_to_ours() -> None:
    run = run_of(
        "lora-sft",
        told([1.0, 1.0, 1.0], [5.0, 5.0, 5.0], peer="trl"),
        told([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], peer="trl-one-by-one"),
    )
    *_, best = compared(run)
    (job,) = jobs_called(["lora-sft"])
    assert best.best
    assert (best.peer.name, best.peer.goal, best.ratios) == ("trl-one-by-one", job.best_goal, [2.0, 2.0])


def test_checkpointing_has_the_same_peers_and_no_goal() -> None:
    jobs = {job.name: job for job in JOBS if job.trains and job.device == "cpu"}
    plain = [job for job in jobs.values() if not job.checkpointing]
    assert {job.name for job in jobs_called(["checkpointing"])} == {f"{job.name}-checkpointing" for job in plain}
    for job in plain:
        twin = jobs[f"{job.name}-checkpointing"]
        assert [peer.key for peer in twin.peers] == [peer.key for peer in job.peers]
        assert (twin.work, twin.scale("cpu")) == (job.name, {**job.scale("cpu"), "checkpointing": True})
    pair = [told([1.0, 1.0], [2.0, 2.0], peer=name) for name in ("trl", "trl-one-by-one")]
    run = run_of("lora-sft-checkpointing", *pair)
    assert goals(run) == []
    assert [row.best for row in compared(run)] == [False, False, True]


def test_other_losses_and_other_tokens_are_not_the_same_work() -> None:
    for change in ({"loss": 2.1}, {"tokens": 99}):
        pair = told([1.0, 1.0], [1.0, 1.0])
        pair["steps"]["ours"][1] |= change
        assert differs(run_of("lora-two-levels", pair)) == ["lora-two-levels beside peft-adapters"]


def test_texts_may_part_at_a_tie_alone() -> None:
    texts = told([1.0, 1.0], [1.0, 1.0], peer="transformers")
    for gaps, same in (([None, 1e-4], True), ([None, 0.5], False)):
        assert (differs(run_of("generation", {**texts, "gaps": gaps})) == []) is same


def grown(curve: Curve, **seconds: tuple[float, float]) -> Grown:
    """Return two counted rounds behind a warm-up, of given (seconds of the whole, of the optimizer)."""
    steps = {
        point.name: [
            {"tokens": 10.0, "seconds": 99.0, "optimizer": 0.0},
            *({"tokens": 10.0, "seconds": whole * n, "optimizer": own * n} for n in (1, 2)),
        ]
        for point, (whole, own) in zip(curve.points, seconds.values(), strict=True)
    }
    return Grown(steps, [0.0, 0.0, 0.0])


CURVE = Curve("k", "k", tuple(Point(name, {}, k, 2, 2) for name, k in (("2 levels", 2), ("16 levels", 16))), True)


def test_cost_grows_over_the_first_point_of_a_curve() -> None:
    cost = grown(CURVE, first=(2.0, 1.0), last=(3.0, 1.5))
    assert growth_ratios(CURVE, cost)["2 levels"] == [1, 1]
    assert growth_ratios(CURVE, cost)["16 levels"] == pytest.approx([1.5, 1.5])
    assert growth_ratios(CURVE, cost, optimizer=False)["16 levels"] == pytest.approx([1.5, 1.5])
    cost = grown(CURVE, first=(2.0, 0.0), last=(3.0, 1.0))
    assert growth_ratios(CURVE, cost, optimizer=False)["16 levels"] == pytest.approx([1, 1])


def test_curves_start_at_the_smallest_and_vary_one_thing() -> None:
    for curve in CURVES:
        names = [point.name for point in curve.points]
        assert len(set(names)) == len(names)
        if curve.of_levels:
            assert [point.levels for point in curve.points] == [2, 5, 16]
            assert all(point.rows >= point.levels for point in curve.points), "every level has a row"
    lengths = next(curve for curve in CURVES if curve.name == "length")
    assert {point.rows * point.length for point in lengths.points} == {2048}


def test_a_shrunk_point_keeps_its_levels_and_two_tokens() -> None:
    small = _shrunk(Point("x", {"kind": "lora", "rank": 64, "alpha": 16}, 16, 32, 16), 20)
    assert small == Point("x", {"kind": "lora", "rank": 3, "alpha": 16}, 16, 2, 16)


@pytest.mark.parametrize(
    ("names", "forward", "group"),
    [
        (["aten::mm", "aten::matmul", "aten::linear"], None, PRODUCTS),
        (["aten::linear"], None, ELEMENTWISE),
        (["aten::mul_", "_Node"], None, CONTROL),
        (["aten::mm", "_NodeBackward", "autograd::engine::evaluate_function: _NodeBackward"], None, PRODUCTS),
        (["aten::mm", "MmBackward0", "autograd::engine::evaluate_function: MmBackward0"], PRODUCTS, PRODUCTS),
        (["aten::mul", "MulBackward0", "autograd::engine::evaluate_function: MulBackward0"], PRODUCTS, ELEMENTWISE),
        (["aten::bmm", "aten::scaled_dot_product_attention"], None, ATTENTION),
        (
            ["aten::sum", "ExpandBackward0", "autograd::engine::evaluate_function: ExpandBackward0"],
            ATTENTION,
            ATTENTION,
        ),
        (["aten::_fused_adamw_", "Optimizer.step#AdamW.step"], None, OPTIMIZER),
        (["aten::_foreach_mul_"], None, OPTIMIZER),
        (["aten::cat", "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"], None, DATA),
    ],
)
def test_operations_are_sorted_by_name_and_surroundings(names: list[str], forward: str | None, group: str) -> None:
    assert group_of(names, forward, narrow=False) == group


def test_narrow_products_of_a_node_are_loras_own() -> None:
    assert is_narrow(([64, 576], [576, 24]), 24)
    assert not is_narrow(([64, 576], [576, 192], []), 24)
    assert group_of(["aten::addmm_", "_Node"], None, narrow=True) == CONTROL
    assert group_of(["aten::addmm_", "_Node"], None, narrow=False) == PRODUCTS
    assert group_of(["aten::mul_", "_Node"], None, narrow=None) == ELEMENTWISE, "a node without LoRA"
    assert group_of(["mkldnn::_linear_pointwise", "_Node"], None, narrow=None) == PRODUCTS
    assert group_of(["aten::mm"], None, narrow=True) == PRODUCTS, "a model's own narrow layer is no LoRA"


def test_backward_is_sorted_by_its_forward_and_what_is_recomputed_by_itself() -> None:
    clock = count()

    def event(name: str, seconds: float, number: int = -1, within: Any = None, shapes: Any = None) -> Any:
        start = SimpleNamespace(start=next(clock))
        return SimpleNamespace(
            name=name,
            self_cpu_time_total=1e6 * seconds,
            sequence_nr=number,
            cpu_parent=within,
            time_range=start,
            input_shapes=shapes,
            device_type=DeviceType.CPU,
            self_device_time_total=2e6 * seconds,
        )

    attention = event("aten::scaled_dot_product_attention", 1.0, 5)
    node = event("autograd::engine::evaluate_function: ScaledDotProductBackward0", 2.0, 5)
    backward = event("aten::sum", 4.0, -1, node)
    again = event("aten::mm", 8.0, 9, node)
    layer = event("_Node", 100.0, 7)
    wide = event("aten::mm", 16.0, -1, layer, [[9, 64], [64, 32]])
    narrow = event("aten::mm", 32.0, -1, layer, [[9, 64], [64, 4]])
    seconds = sorted_time([backward, again, node, attention, narrow, wide, layer], narrow=4)
    assert seconds[ATTENTION] == 1 + 2 + 4
    assert seconds[PRODUCTS] == 8 + 16
    assert seconds[CONTROL] == 32
    assert sum(seconds.values()) == 63, "a node's own time is Python's"
    events = [backward, again, node, attention, narrow, wide, layer]
    kernel = SimpleNamespace(device_type=DeviceType.CUDA, time_range=SimpleNamespace(start=0))
    assert sum(sorted_time([kernel, *events], narrow=4, cuda=True).values()) == 126, "kernels, each once"


@pytest.mark.parametrize(("kind", "recomputes"), [("lora", False), ("lora", True), ("soft-prompt", False)])
def test_a_profile_adds_up(kind: str, recomputes: bool) -> None:
    lm = tiny_lm("llama", dtype=torch.float32)
    if recomputes:
        checkpoint_activations(lm)
    policy = tiny_policy("llama", kind, lm=lm).float().train()
    policy.lm.requires_grad_(False)
    batch = collate(sequences(policy, [(5, 4), (3, 6)]), policy.layout)
    profile = StepProfile(narrow=6 if kind == "lora" else 0)
    profile.start()
    policy(batch["blocks"], batch["num_completions"]).sums().sum().backward()
    seconds = profile.stop()
    assert set(seconds) == set(OPERATIONS)
    assert all(seconds[group] > 0 for group in (PRODUCTS, ATTENTION, ELEMENTWISE, OUTSIDE))
    assert (seconds[CONTROL] > 0) is (kind == "lora")
    assert seconds[OPTIMIZER] == seconds[DATA] == 0
    shares = Profile(seconds, None)
    assert sum(map(shares.share, OPERATIONS)) == pytest.approx(1)


def test_the_rate_of_products_counts_only_the_time_that_they_take() -> None:
    profile = Profile({PRODUCTS: 2.0, ELEMENTWISE: 2.0}, product_flops=30.0)
    assert (profile.share(PRODUCTS), profile.product_rate()) == (0.5, 15.0)


def test_flops_by_hand() -> None:
    """The tiny llama: D=24, 4 heads of 6 and 2 of keys and values, I=32, 2 layers, 320 words.

    Weights of a block: q 24·24, k and v 24·12 each, o 24·24, three of 24·32: 4,032; of both 8,064.
    """
    policy = tiny_policy("llama", "lora", dtype=torch.float32)
    block = collate(sequences(policy, [(5, 4), (2, 3)]), "packed")["blocks"]  # 9 and 5 tokens, 7 trained
    frozen = Flops(policy.lm, trains_lm=False, rank=2).of(block)
    qkv = 24 * 24 + 2 * 24 * 12
    head = 7 * 2 * 24 * 320
    assert frozen["products"] == 14 * (2 * 8064 + 2 * (8064 - qkv)) + 2 * head
    sides = 2 * ((24 + 24) + 2 * (24 + 12) + (24 + 24) + 3 * (24 + 32))
    assert frozen["lora"] == 14 * 3 * 2 * 2 * sides
    assert frozen["attention"] == 2 * 6 * 24 * (9**2 + 5**2)
    trained = Flops(policy.lm, trains_lm=True).of(block)
    assert trained["products"] == 14 * 6 * 8064 + 3 * head
    assert trained["lora"] == 0
    slot = Flops(policy.lm, trains_lm=False, slot=True).of(block)
    assert slot["products"] == 14 * 4 * 8064 + 2 * head


def test_padding_is_not_counted_and_a_shared_prompt_once() -> None:
    policy = tiny_policy("llama", "none", dtype=torch.float32)
    flops = Flops(policy.lm, trains_lm=True)
    rows = sequences(policy, [(5, 4), (2, 3)])
    assert flops.of(collate(rows, "padded", max_waste=1.0)["blocks"]) == flops.of(collate(rows, "packed")["blocks"])
    (one,) = sequences(policy, [(5, 4)])
    shared = flops.of(collate([one, one], "packed", share=True)["blocks"])
    alone = flops.of(collate([one], "packed")["blocks"])
    head = 4 * 3 * 2 * 24 * 320
    assert shared["products"] == (9 + 5) * 6 * 8064 + 2 * head  # the prompt's last token is in both
    assert shared["attention"] - alone["attention"] == 2 * 6 * 24 * (5**2 + 2 * 5 * 4)


def test_a_window_is_counted_as_far_as_it_goes() -> None:
    """GPT-Neo: one layer sees all, the other no more than 5 tokens: of 9, 1 + 2 + 3 + 4 + 5·5 pairs, own ones half."""
    lm = tiny_lm("gpt-neo", dtype=torch.float32)
    lm.config.window_size = 5
    (one,) = sequences(Policy(lm, tiny_control(lm, "none")), [(5, 4)])
    assert sorted(lm.config.attention_layers) == ["global", "local"]
    count, width = Flops(lm, trains_lm=True), lm.config.hidden_size
    alone = count.of(collate([one], "packed")["blocks"])["attention"]
    assert alone == 6 * width * (9**2 + 2 * (1 + 2 + 3 + 4 + 5 * 5) - 9)
    shared = count.of(collate([one, one], "packed", share=True)["blocks"])["attention"]
    # The second reply is read behind the four tokens that both share: it has five of its own, of 5 to 9 before.
    assert shared - alone == 6 * width * (2 * (5 + 6 + 7 + 8 + 9) - 5 + 2 * 5 * 5 - 5)


def test_the_curve_over_models_has_a_goal_on_cuda_alone() -> None:
    for device, wanted in (("cpu", 0), ("cuda", 1)):
        pair = told([1.0, 1.0, 1.0], [1.0, 4.0, 4.0], peer="trl")
        run = replace(EMPTY, device=device, told={f"lora-sft-{name}": {"trl": pair} for name in ("135m", "360m")})
        assert len(goals(run)) == wanted
        rows = [line for line in report.markdown(run).splitlines() if line.startswith(("| 135M, ", "| 360M, "))]
        assert len(rows) == 2
        assert f"| {MODELS['360m'].rows[device]} | trl | 100 / 25 | 4.00 [4.00, 4.00] |" in rows[1]
        assert rows[1].endswith("| 1.20 [1.20, 1.20] | the same tokens, losses within 0e+00 |")


def test_a_busy_machine_is_refused_with_names() -> None:
    quiet.refuse(quiet.LIMIT, [])
    with pytest.raises(SystemExit, match="45% of a core, more than 20%") as caught:
        quiet.refuse(0.45, ["12 (make): 40% of a core"])
    assert "12 (make)" in str(caught.value)


@pytest.mark.parametrize(("machine", "own", "others"), [(6.0, 4.0, 0.5), (6.0, 6.0, 0.0), (5.9, 6.0, 0.0)])
def test_others_use_what_is_not_ours(
    machine: float, own: float, others: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(*values: float) -> Iterator[float]:
        yield from values

    clock, whole, ours = reads(10.0, 14.0), reads(100.0, 100.0 + machine), reads(20.0, 20.0 + own)
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(quiet, "_machine", lambda: next(whole))
    monkeypatch.setattr(quiet, "_own", lambda: next(ours))
    assert quiet.Busy().others() == pytest.approx(others)


def test_jobs_are_called_by_name() -> None:
    cpu, cuda = jobs_called(["all"]), jobs_called(["all"], "cuda")
    assert set(cpu) | set(cuda) == set(JOBS)
    assert {job.name for job in cpu} & {job.name for job in cuda} == {f"lora-sft-{model}" for model in MODELS}
    assert jobs_called(["models", "lora-sft-135m"]) == [job for job in cpu if job.model]
    assert all(job.model for job in cuda), "weights are not carried to a GPU"
    with pytest.raises(SystemExit, match="unknown job 'dpo'; on cuda there are"):
        jobs_called(["dpo"], "cuda")
    assert [job.name for job in jobs_called(["growth", "dpo"])] == ["growth", "dpo"]
    with pytest.raises(SystemExit, match="unknown job 'growht'"):
        jobs_called(["growht"])
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert all(len({peer.key for peer in job.peers}) == len(job.peers) for job in JOBS)


def test_the_report_says_what_is_missed_and_by_how_much() -> None:
    pair = told([1.0, 2.0, 2.0], [1.0, 4.0, 4.0])
    curve = next(one for one in CURVES if one.name == "levels-lora-4")
    cost = grown(curve, two=(1.0, 0.0), five=(1.1, 0.1), sixteen=(1.5, 0.4))
    run = replace(run_of("lora-two-levels", pair), growth={curve.name: cost}, failed={"dpo beside trl": "killed\nmore"})
    text = report.markdown(run)
    assert "| ≥ 3 | 2.00 [2.00, 2.00] | **no**, 33% short |" in text
    assert "| ≤ 0.6 | 1.00 (50 MB beside 50 MB) | **no**, 67% over |" in text
    assert "Our step computes at 0.60 of the rate of a plain product: were it 1, the ratio would be 3.33." in text
    assert "Our step is matrix products 70%" in text
    assert "Its matrix products run at 0.57 of the rate of a plain one." in text
    assert "Forward and backward alone: 1.10 [1.10, 1.10]." in text
    assert "**dpo beside trl failed**: killed\n" in text
    assert "others used up to" not in text, "a loud warm-up does not count"


def test_an_empty_report_and_one_of_growth_alone_are_whole() -> None:
    assert "Not run" in report.markdown(EMPTY)
    curve = next(one for one in CURVES if one.name == "rows")
    cost = grown(curve, one=(4.0, 0.0), four=(2.0, 0.0), sixteen=(1.0, 0.0))
    text = report.markdown(replace(EMPTY, growth={curve.name: cost}))
    assert "| 16 rows | 150.00 | 0.25 [0.25, 0.25] | 0 |" in text
    assert "16 levels over 2" not in text


def test_a_job_without_its_own_program_has_no_rate() -> None:
    texts = told([1.0, 1.0], [1.0, 1.0], peer="transformers")
    assert list(rates(run_of("generation", texts))) == []
    assert not Job("x", "x", (Peer("y"),), "prompts").trains
