"""The arithmetic of the benchmark on small numbers: nothing is timed here, and no real model is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))  # its files are scripts, not a package

import quiet
import report
from curves import CURVES, Curve, Point
from growth import _shrunk
from jobs import JOBS, select_jobs
from models import MODELS
from results import (
    CurveMeasurements,
    Goal,
    Measurements,
    Run,
    comparisons,
    different_work,
    goals,
    growth_ratios,
    spread,
)

EMPTY = Run({}, {}, rounds=3, threads=1, scale={}, command=[], failed={})


def step(seconds: float, loss: float = 2.0, tokens: int = 100) -> dict[str, Any]:
    return {"seconds": seconds, "loss": loss, "tokens": tokens, "above_mb": 50.0}


def measured(ours: list[float], peers: list[float], *, peer: str = "peft-adapters") -> Measurements:
    """Return the measurements of two programs whose steps took these seconds."""
    return Measurements(
        startup={"ours": {}, peer: {"settings": {"learning_rate": 1e-4}, "adapter": {"r": 4}}},
        steps={"ours": [step(seconds) for seconds in ours], peer: [step(seconds) for seconds in peers]},
        other_load=[0.9, 0.0, 0.1],
    )


def run_of(job: str, *pairs: Measurements) -> Run:
    """Return a run of one job beside its first peers."""
    (selected,) = select_jobs([job])
    return replace(EMPTY, measured={job: {peer.key: pair for peer, pair in zip(selected.peers, pairs, strict=False)}})


@pytest.mark.parametrize(
    ("values", "text"),
    [([2.0], "2.00"), ([3.0, 1.0, 2.0], "2.00 [1.00, 3.00]"), ([1.0, 2.0], "1.50 [1.00, 2.00]")],
)
def test_a_spread_is_the_median_with_both_ends(values: list[float], text: str) -> None:
    assert spread(values) == text


@pytest.mark.parametrize(
    ("at_least", "bound", "values", "miss"),
    [
        (True, 2.0, [1.0, 2.0, 9.0], ""),
        (True, 2.0, [1.0, 1.5, 9.0], "25% short"),
        (False, 0.6, [0.6], ""),
        (False, 0.6, [0.9], "50% over"),
    ],
)
def test_a_goal_is_met_by_the_median(at_least: bool, bound: float, values: list[float], miss: str) -> None:
    assert Goal("job", "what", bound, values, at_least).miss == miss


def test_a_ratio_is_taken_in_each_round_but_the_first() -> None:
    run = run_of("lora-two-levels", measured([9.0, 1.0, 2.0], [1.0, 4.0, 4.0]))
    (row,) = comparisons(run)
    assert row.ratios == [4.0, 2.0]
    assert row.speeds == (75.0, 25.0)
    assert row.same_work[0]
    speed, memory = goals(run)
    assert (speed.values, speed.at_least, speed.miss) == ([4.0, 2.0], True, "")
    assert (memory.values, memory.at_least, memory.miss) == ([1.0], False, "67% over")


def test_the_fastest_setting_of_a_peer_is_compared() -> None:
    run = run_of(
        "lora-sft",
        measured([1.0, 1.0, 1.0], [5.0, 5.0, 5.0], peer="trl"),
        measured([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], peer="trl-one-by-one"),
    )
    *_, best = comparisons(run)
    (job,) = select_jobs(["lora-sft"])
    assert best.is_best
    assert (best.peer.name, best.peer.goal, best.ratios) == ("trl-one-by-one", job.best_goal, [2.0, 2.0])


def test_checkpointing_has_the_same_peers_and_no_goal() -> None:
    jobs = {job.name: job for job in JOBS if job.trains and job.device == "cpu"}
    plain = [job for job in jobs.values() if not job.checkpointing]
    assert {job.name for job in select_jobs(["checkpointing"])} == {f"{job.name}-checkpointing" for job in plain}
    for job in plain:
        twin = jobs[f"{job.name}-checkpointing"]
        assert [peer.key for peer in twin.peers] == [peer.key for peer in job.peers]
        assert (twin.work, twin.scale("cpu")) == (job.name, {**job.scale("cpu"), "checkpointing": True})
    pair = [measured([1.0, 1.0], [2.0, 2.0], peer=name) for name in ("trl", "trl-one-by-one")]
    run = run_of("lora-sft-checkpointing", *pair)
    assert goals(run) == []
    assert [row.is_best for row in comparisons(run)] == [False, False, True]


def test_other_losses_and_other_tokens_are_not_the_same_work() -> None:
    changes: list[dict[str, Any]] = [{"loss": 2.1}, {"tokens": 99}]
    for change in changes:
        pair = measured([1.0, 1.0], [1.0, 1.0])
        pair.steps["ours"][1] |= change
        assert different_work(run_of("lora-two-levels", pair)) == ["lora-two-levels beside peft-adapters"]


def test_few_texts_may_differ() -> None:
    for num_different, same in ((1, True), (2, False)):
        pair = measured([1.0, 1.0], [1.0, 1.0], peer="transformers")
        pair.steps["ours"][-1] |= {"texts": ["a"] * 20}
        pair.steps["transformers"][-1] |= {"texts": ["a"] * (20 - num_different) + ["b"] * num_different}
        assert (different_work(run_of("generation", pair)) == []) is same


def test_a_saved_run_is_loaded_without_its_failures(tmp_path: Path) -> None:
    curve = next(curve for curve in CURVES if curve.name == "rows")
    run = run_of("lora-two-levels", measured([1.0, 1.0], [2.0, 2.0]))
    run = replace(run, growth={curve.name: grown(curve, one=(4.0, 0.0), four=(2.0, 0.0), sixteen=(1.0, 0.0))})
    replace(run, failed={"dpo": "killed"}).save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json") == run


def grown(curve: Curve, **seconds: tuple[float, float]) -> CurveMeasurements:
    """Return a warm-up round and two counted rounds, given seconds of the whole step and of the optimizer."""
    steps = {
        point.name: [
            {"tokens": 10.0, "seconds": 99.0, "optimizer": 0.0},
            *({"tokens": 10.0, "seconds": whole * n, "optimizer": part * n} for n in (1, 2)),
        ]
        for point, (whole, part) in zip(curve.points, seconds.values(), strict=True)
    }
    return CurveMeasurements(steps, [0.0, 0.0, 0.0])


CURVE = Curve("k", "k", tuple(Point(name, {}, k, 2, 2) for name, k in (("2 levels", 2), ("16 levels", 16))), True)


def test_cost_grows_over_the_first_point_of_a_curve() -> None:
    cost = grown(CURVE, first=(2.0, 1.0), last=(3.0, 1.5))
    assert growth_ratios(CURVE, cost)["2 levels"] == [1, 1]
    assert growth_ratios(CURVE, cost)["16 levels"] == pytest.approx([1.5, 1.5])


def test_curves_start_at_the_smallest_and_vary_one_thing() -> None:
    for curve in CURVES:
        names = [point.name for point in curve.points]
        assert len(set(names)) == len(names)
        if curve.varies_levels:
            assert [point.levels for point in curve.points] == [2, 5, 16]
            assert all(point.rows >= point.levels for point in curve.points), "every level has a row"
    lengths = next(curve for curve in CURVES if curve.name == "length")
    assert {point.rows * point.length for point in lengths.points} == {2048}


def test_a_shrunk_point_keeps_its_levels_and_two_tokens() -> None:
    small = _shrunk(Point("x", {"kind": "lora", "rank": 64, "alpha": 16}, 16, 32, 16), 20)
    assert small == Point("x", {"kind": "lora", "rank": 3, "alpha": 16}, 16, 2, 16)


def test_the_curve_over_models() -> None:
    for device in ("cpu", "cuda"):
        pair = measured([1.0, 1.0, 1.0], [1.0, 4.0, 4.0], peer="trl")
        run = replace(EMPTY, device=device, measured={f"lora-sft-{name}": {"trl": pair} for name in ("135m", "360m")})
        assert goals(run) == []
        rows = [line for line in report.markdown(run).splitlines() if line.startswith(("| 135M, ", "| 360M, "))]
        assert len(rows) == 2
        assert f"| {MODELS['360m'].rows[device]} | trl | 100 / 25 | 4.00 [4.00, 4.00] |" in rows[1]
        assert rows[1].endswith("| the same tokens, losses within 0e+00 |")


def test_a_busy_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet.Busy, "other_load", lambda self: quiet.LIMIT)
    quiet.refuse_busy_machine(0)
    monkeypatch.setattr(quiet.Busy, "other_load", lambda self: 0.45)
    with pytest.raises(SystemExit, match="45% of a core, more than 20%"):
        quiet.refuse_busy_machine(0)


@pytest.mark.parametrize(("machine", "ours", "expected"), [(6.0, 4.0, 0.5), (6.0, 6.0, 0.0), (5.9, 6.0, 0.0)])
def test_memory_of_other_programs(
    machine: float, ours: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(*values: float) -> Iterator[float]:
        yield from values

    clock, all_busy, our_cpu = reads(10.0, 14.0), reads(100.0, 100.0 + machine), reads(20.0, 20.0 + ours)
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(quiet, "_busy_seconds", lambda: next(all_busy))
    monkeypatch.setattr(quiet, "_our_cpu_seconds", lambda: next(our_cpu))
    assert quiet.Busy().other_load() == pytest.approx(expected)


def test_jobs_are_selected_by_name() -> None:
    cpu, cuda = select_jobs(["all"]), select_jobs(["all"], "cuda")
    assert set(cpu) | set(cuda) == set(JOBS)
    assert {job.name for job in cpu} & {job.name for job in cuda} == {f"lora-sft-{model}" for model in MODELS}
    assert select_jobs(["models", "lora-sft-135m"]) == [job for job in cpu if job.model]
    assert all(job.model for job in cuda), "weights are not carried to a GPU"
    with pytest.raises(SystemExit, match="unknown job 'dpo'; on cuda there are"):
        select_jobs(["dpo"], "cuda")
    assert [job.name for job in select_jobs(["growth", "dpo"])] == ["growth", "dpo"]
    with pytest.raises(SystemExit, match="unknown job 'growht'"):
        select_jobs(["growht"])
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert all(len({peer.key for peer in job.peers}) == len(job.peers) for job in JOBS)


def test_the_report_lists_missed_goals() -> None:
    pair = measured([1.0, 2.0, 2.0], [1.0, 4.0, 4.0])
    curve = next(curve for curve in CURVES if curve.name == "levels-lora-4")
    cost = grown(curve, two=(1.0, 0.0), five=(1.1, 0.1), sixteen=(1.5, 0.4))
    run = replace(run_of("lora-two-levels", pair), growth={curve.name: cost}, failed={"dpo beside trl": "killed\nmore"})
    text = report.markdown(run)
    assert "| ≥ 3 | 2.00 [2.00, 2.00] | **no**, 33% short |" in text
    assert "| ≤ 0.6 | 1.00 (50 MB beside 50 MB) | **no**, 67% over |" in text
    assert "| 16 levels | 225.00 | 1.50 [1.50, 1.50] | 600 |" in text
    assert "**dpo beside trl failed**: killed\n" in text
    assert "- lora-two-levels, peft-adapters: learning_rate=0.0001, adapter.r=4" in text
    assert "| lora-two-levels | ours | 2.000000 (100 tokens) |" in text
    assert "others used up to" not in text, "a loud warm-up does not count"


def test_an_empty_report_is_whole() -> None:
    assert report.markdown(EMPTY).count("Not run") == 5
