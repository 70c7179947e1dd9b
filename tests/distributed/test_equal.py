"""Training in 2 and 4 processes equals training in one: losses, gradients, weights, metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from combinations import covering
from distributed import jobs
from distributed.conftest import SIZES
from distributed.jobs import Trained, Training
from distributed.processes import Processes
from tiny import gap

Groups = Callable[[int], Processes]

pytestmark = pytest.mark.distributed

STAGES: dict[str, dict[str, Any]] = {
    "nll": {"format": "conditional"},
    "nll of chosen": {"format": "chosen"},
    "dpo": {"format": "pairwise", "objective": {"kind": "dpo"}},
}
CONTROLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "lora on replies": ("lora", {"scope": "response"}),
    "soft prompt": ("soft-prompt", {}),
    "special token before replies": ("special-token", {"placement": "before_response"}),
}
DIMENSIONS: dict[str, list[Any]] = {
    "architecture": ["llama", "gpt-neo", "gptj", "gemma3"],
    "control": list(CONTROLS),
    "trained": [("control",), ("lm",), ("control", "lm")],
    "stage": list(STAGES),
    "sizes": [(8, 8, 1), (10, 4, 1), (5, 4, 2), (13, 8, 4)],
    "size": list(SIZES),
}
"""``sizes``: number of pairs, pairs per step, most pairs per forward pass."""
NOT_COMPARED = ("tokens_per_second", "epoch")
"""Speed, and the epoch, which Trainer counts in forward passes of one process."""


def assert_equal(one: Trained, several: list[Trained], tolerance: float) -> None:
    """Require equal metrics, and equal gradients and weights in every process."""
    assert len(one.metrics) == len(several[0].metrics) > 0
    for expected, values in zip(one.metrics, several[0].metrics, strict=True):
        names = [name for name in expected if name not in NOT_COMPARED]
        assert {name: values[name] for name in names} == pytest.approx(
            {name: expected[name] for name in names}, rel=max(tolerance, 1e-5), abs=max(tolerance, 1e-6)
        )
    for process in several:
        assert len(process.gradients) == len(one.gradients) > 0
        assert max(map(gap, one.gradients, process.gradients)) < tolerance
        assert gap(one.weights, process.weights) < tolerance
        assert process.is_released


@pytest.mark.parametrize(tuple(DIMENSIONS), covering(list(DIMENSIONS.values()), 2))
def test_training(
    architecture: str,
    control: str,
    trained: tuple[str, ...],
    stage: str,
    sizes: tuple[int, int, int],
    size: int,
    groups: Groups,
    tmp_path: Path,
) -> None:
    kind, settings = CONTROLS[control]
    count, pairs, micro = sizes
    training = Training(
        architecture,
        kind,
        trained,
        count=count,
        pairs=pairs,
        micro=micro,
        steps=4,
        policy=settings,
        stage=STAGES[stage],
    )
    one = jobs.train(training, tmp_path / "one")
    several = groups(size).run("train", training=training, folder=tmp_path / "several")
    assert_equal(one, several, 1e-6)
    assert sum(len(forward) for process in several for forward in process.passes) == sum(map(len, one.passes))
    if one.reference is not None:
        assert all(torch.equal(one.reference, process.reference) for process in several)


@pytest.mark.parametrize("control", ["lora", "soft prompt"])
def test_training_in_f32(control: str, groups: Groups, tmp_path: Path) -> None:
    kind, settings = CONTROLS[control]
    training = Training("llama", kind, ("control", "lm"), dtype=torch.float32, micro=2, steps=6, policy=settings)
    one = jobs.train(training, tmp_path / "one")
    assert_equal(one, groups(2).run("train", training=training, folder=tmp_path / "two"), 1e-4)


def test_processes_have_different_levels_and_numbers_of_tokens_in_one_pass(groups: Groups, tmp_path: Path) -> None:
    """One reply per forward pass: some passes have one level in one process and another level in the other."""
    training = Training(single=True, count=8, pairs=4, steps=4)
    one = jobs.train(training, tmp_path / "one")
    several = groups(2).run("train", training=training, folder=tmp_path / "two")
    passes = list(zip(*(process.passes for process in several), strict=True))
    assert any(left[0][0] != right[0][0] for left, right in passes)
    assert any(left[0][0] == right[0][0] for left, right in passes)
    assert max(max(left[0][1], right[0][1]) / min(left[0][1], right[0][1]) for left, right in passes) >= 2
    assert_equal(one, several, 1e-6)


def test_a_step_with_fewer_pairs_than_processes(groups: Groups, tmp_path: Path) -> None:
    training = Training(count=5, pairs=4, steps=4)
    one = jobs.train(training, tmp_path / "one")
    several = groups(4).run("train", training=training, folder=tmp_path / "four")
    assert [[len(forward) for forward in process.passes] for process in several] == [[2, 2, 2, 2]] + 3 * [[2, 0, 2, 0]]
    assert_equal(one, several, 1e-6)


def test_a_soft_prompt_that_some_processes_do_not_use(groups: Groups, tmp_path: Path) -> None:
    """Replies without a slot in some passes, as in data with attributes that not every reply states."""
    training = Training(
        kind="soft-prompt", train=("control", "lm"), single=True, without_slot=(0, 1, 4, 5, 6, 9), count=6, steps=6
    )
    one = jobs.train(training, tmp_path / "one")
    several = groups(2).run("train", training=training, folder=tmp_path / "two")
    assert_equal(one, several, 1e-6)


def test_two_stages_with_one_policy(groups: Groups, tmp_path: Path) -> None:
    """The second stage is not disturbed by the wrapper of the first."""
    stages = [Training(train=("control", "lm"), micro=2), Training(train=("control",), seed=1, micro=2)]
    one = jobs.train_stages(stages, tmp_path / "one")
    several = groups(2).run("train_stages", stages=stages, folder=tmp_path / "two")
    for index in range(2):
        assert_equal(one[index], [process[index] for process in several], 1e-6)


@pytest.mark.parametrize("sizes", [(2, 1), (2, 4), (1, 2), (4, 2)], ids=str)
def test_a_checkpoint_continues_in_another_number_of_processes(
    sizes: tuple[int, int], groups: Groups, tmp_path: Path
) -> None:
    """Stopped in the middle of the second epoch, in which a step has fewer pairs than a whole one."""
    training = Training(train=("control", "lm"), count=10, pairs=4, steps=7, save_steps=1)

    def run(size: int, folder: Path, **more: Any) -> list[Trained]:
        if size == 1:
            return [jobs.train(training, folder, **more)]
        return groups(size).run("train", training=training, folder=folder, **more)

    whole = jobs.train(training, tmp_path / "whole")
    run(sizes[0], tmp_path / "run", stop_after=5)
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoint-5").iterdir())
    states = ["rng_state.pth"] if sizes[0] == 1 else [f"rng_state_{rank}.pth" for rank in range(sizes[0])]
    assert [name for name in files if name.startswith("rng")] == states
    continued = run(sizes[1], tmp_path / "run", resume=tmp_path / "run" / "checkpoint-5")
    assert len(continued[0].gradients) == 2
    assert max(map(gap, whole.gradients[5:], continued[0].gradients)) < 1e-6
    for process in continued:
        assert gap(whole.weights, process.weights) < 1e-6
    assert [line["loss"] for line in continued[0].metrics] == pytest.approx([line["loss"] for line in whole.metrics])


def test_a_batch_that_cannot_be_divided_is_refused(groups: Groups, tmp_path: Path) -> None:
    for pairs, choice in ((6, "set it to 4 or 8"), (3, "set it to 4,")):
        for message in groups(4).run("error_of", training=Training(pairs=pairs), folder=tmp_path):
            assert message.startswith(f"batch.pairs is {pairs}, ") and "4 processes" in message and choice in message
