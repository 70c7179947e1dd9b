"""Scoring, generation and reward models divide their rows among the processes and return all results in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distributed import jobs
from distributed.conftest import SIZES
from distributed.processes import Processes
from reward_models import folder_of
from run_folders import finished

Groups = Callable[[int], Processes]

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_scores(layout: str, size: int, groups: Groups) -> None:
    expected, num_passes = jobs.scores(layout)
    results = groups(size).run("scores", layout=layout)
    for scores, _ in results:
        assert torch.equal(scores, expected)
    passes = [count for _, count in results]
    assert sum(passes) == num_passes and max(passes) - min(passes) <= 1 and min(passes) > 0


def test_reference_is_computed_once_and_cached_by_the_main_process(groups: Groups, tmp_path: Path) -> None:
    expected, _ = jobs.reference(tmp_path / "one")
    for name in ("computed", "cached"):
        results = groups(2).run("reference", folder=tmp_path / "two")
        assert all(torch.equal(logps, expected) for logps, _ in results)
        assert [passes > 0 for _, passes in results] == 2 * [name == "computed"]
        assert len(list((tmp_path / "two").iterdir())) == 1


@pytest.mark.parametrize("size", SIZES)
def test_completions(size: int, groups: Groups, tmp_path: Path) -> None:
    """Sampled: each prompt has its own random numbers, whichever process completes it; one call is interrupted."""
    run = finished(tmp_path, "llama", "lora")
    expected = jobs.completions(run, tmp_path / "one.jsonl")
    unfinished = jobs.completions(run, tmp_path / "several.jsonl", stop_after=5)
    assert unfinished == ""
    results = groups(size).run("completions", run=run, out=tmp_path / "several.jsonl")
    assert set(results) == {expected} and len(expected.splitlines()) == jobs.NUM_PROMPTS
    assert not list(tmp_path.glob("*.unfinished"))


def test_rewards(groups: Groups, tmp_path: Path) -> None:
    model = folder_of("deberta", tmp_path)
    expected = jobs.rewards(str(model))
    assert len(set(expected)) > 5 and None in expected
    for rewards in groups(2).run("rewards", model=str(model)):
        assert rewards == expected
