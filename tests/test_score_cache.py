"""Kept scores: what decides a score is in its key, and problems are those of the rows that are asked about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meetlm.config.errors import DataError
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.score_cache import KeptScores
from reward_models import KINDS, TOLERANCE, folder_of, load
from tiny import CHATML

PROMPTS = ["How are you?", "What is rice?", "What is water?", "A good way?"]
SAYS = ["well", "food", "rice", "boil it"]


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the scores of rows that ask about water NaN."""
    right = RewardModel._scores

    def scores(self: RewardModel, rows: Any, prompts: list[str]) -> Iterator[tuple[list[int], list[float]]]:
        for batch, values in right(self, rows, prompts):
            spoil = [json.loads(prompts[number]) == "What is water?" for number in batch]
            yield batch, [float("nan") if nan else value for nan, value in zip(spoil, values, strict=True)]

    monkeypatch.setattr(RewardModel, "_scores", scores)


def asked(model: RewardModel, folder: Path, places: list[int], system: str) -> tuple[list[Any], list[Any]]:
    """Score rows of a system; return rewards, and what is wrong, how often and where."""
    prompts, completions = [PROMPTS[n] for n in places], [SAYS[n] for n in places]
    rewards, problems = KeptScores(model, folder).score(prompts, completions, [f"{system}:{n}" for n in places])
    return rewards, [(one.what, one.count, one.examples) for one in problems]


@pytest.mark.usefixtures("spoilt")
def test_problems_are_those_of_the_rows_asked_about(tmp_path: Path) -> None:
    """Rows of one chunk belong to several systems and evaluations; each is told of its own alone."""
    model = load(folder_of("bert", tmp_path / "rm"))
    rewards, problems = asked(model, tmp_path, [0, 1, 2, 3], "a")
    nan = "a completion has no reward: the reward model's score is NaN or infinite"
    assert rewards[2] is None and None not in rewards[:2] and problems == [(nan, 1, ["a:2"])]
    again, problems = asked(model, tmp_path, [3, 1], "b")
    assert again == [rewards[3], rewards[1]] and problems == []
    _, problems = asked(model, tmp_path, [2, 0, 2, 2], "c")
    assert problems == [(nan, 3, ["c:2", "c:2", "c:2"])], "replicates with one row are three cells"


def test_cut_rows_and_rows_that_are_refused_are_told_each_time(tmp_path: Path) -> None:
    model = load(folder_of("llama", tmp_path / "rm"), input="text", max_length=16)
    kept = KeptScores(model, tmp_path)
    prompts, completions = ["How are you today? " * 9, "", "Hi"], ["well", "", "you"]
    first = kept.score(prompts, completions, ["a", "b", "c"])
    assert first[0][1] is None and None not in (first[0][0], first[0][2])
    assert sorted(one.examples for one in first[1]) == [["a"], ["b"]]
    assert kept.score(prompts, completions, ["a", "b", "c"]) == first
    done: list[int] = []
    kept.score(prompts * 2, completions * 2, list("abcabc"), done.append)
    assert sum(done) == 6
    shorter = load(tmp_path / "rm", input="text", max_length=12)
    found, _ = KeptScores(shorter, tmp_path).score(prompts, completions, ["a", "b", "c"])
    assert found == pytest.approx(shorter.score(prompts, completions), abs=TOLERANCE) and found[0] != first[0][0]


def test_rows_of_a_prompt_are_scored_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever system they are of: only rows of one call can share their prompt."""
    calls: list[list[str]] = []
    right = RewardModel.score

    def told(self: RewardModel, prompts: Any, *rest: Any, **more: Any) -> Any:
        calls.append(list(prompts))
        return right(self, prompts, *rest, **more)

    monkeypatch.setattr(RewardModel, "score", told)
    monkeypatch.setattr("meetlm.evaluation.score_cache.CHUNK", 4)
    model = load(folder_of("llama", tmp_path / "rm"), input="text")
    prompts, completions = PROMPTS * 3, [f"{one} {system}" for system in "abc" for one in SAYS]
    found, _ = KeptScores(model, tmp_path).score(prompts, completions, completions)
    assert [len(call) for call in calls] == [6, 6] and all(len(set(call)) == 2 for call in calls)
    assert found == pytest.approx(right(model, prompts, completions), abs=TOLERANCE)


def test_white_space_around_a_completion_is_no_new_row(tmp_path: Path) -> None:
    kept = KeptScores(load(folder_of("llama", tmp_path / "rm"), input="text"), tmp_path)
    found, _ = kept.score(PROMPTS, SAYS, SAYS)
    written = kept.file.read_text()
    assert kept.score(PROMPTS, [f" {one}\n" for one in SAYS], SAYS)[0] == found
    assert kept.file.read_text() == written


@pytest.mark.parametrize("change", ["chat template", "form", "eos"])
def test_rows_that_read_otherwise_are_scored_anew(change: str, tmp_path: Path) -> None:
    # With a template the EOS token is the padding too, which is not pooled.
    folder = folder_of("llama" if change == "eos" else "llama with a template", tmp_path / "rm")
    settings: list[dict[str, Any]] = [{"input": "chat"}, {"input": "chat"}]
    if change != "chat template":
        settings = [{"input": "text"}, {"input": "chat"} if change == "form" else {"input": "text", "eos": True}]
    before, _ = asked(load(folder, **settings[0]), tmp_path, [0, 1, 2, 3], "a")
    after = load(folder, **settings[1])
    if change == "chat template":
        after.tokenizer.chat_template = CHATML.replace("<|im_start|>", "Turn of ", 1)
    found, _ = asked(after, tmp_path, [0, 1, 2, 3], "a")
    assert found == pytest.approx(after.score(PROMPTS, SAYS), abs=TOLERANCE)
    assert found != pytest.approx(before, abs=TOLERANCE)


def test_a_file_belongs_to_weights_config_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("llama", tmp_path / "rm")
    model = load(folder, input="text")
    file = KeptScores(model, tmp_path).file
    model.score(PROMPTS, SAYS)
    assert model.why_padded is None and KeptScores(model, tmp_path).file == file, "packing is no other model"
    moved = load(Path(shutil.copytree(folder, tmp_path / "moved")), input="text")
    assert KeptScores(moved, tmp_path).file == file
    moved.model.config.pad_token_id = 7
    assert KeptScores(moved, tmp_path).file != file
    assert model.precision == "torch.float32 on cpu"
    monkeypatch.setattr(RewardModel, "precision", "bfloat16 on cuda")
    assert KeptScores(model, tmp_path).file != file


def test_other_files_are_left_alone_and_a_line_that_is_no_score_is_named(tmp_path: Path) -> None:
    model = load(folder_of("bert", tmp_path / "rm"), input=KINDS["bert"][2])
    earlier = tmp_path / "reward-0123456789abcdef.jsonl"  # as versions before this one wrote it
    earlier.write_text('{"scores": {"0": 1.5}, "problems": [{"what": "a", "count": 1, "examples": []}]}\n')
    kept = KeptScores(model, tmp_path)
    found, problems = kept.score(PROMPTS, SAYS, SAYS)
    assert None not in found and problems == []
    for line in ('{"scores": {"0": 1.5}}', "[1]", "no JSON"):
        kept.file.write_text(line + "\n")
        with pytest.raises(DataError, match="has a line that is no kept score"):
            kept.score(PROMPTS, SAYS, SAYS)
