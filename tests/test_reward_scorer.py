"""Cached rewards: what identifies a score, and that problems are those of the rows asked about."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from meetlm.data.example import Prompt
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_scorer import RewardScorer
from reward_models import TOLERANCE, folder_of, load
from tiny import CHATML

PROMPTS = [Prompt(text) for text in ("How are you?", "What is rice?", "What is water?", "A good way?")]
REPLIES = ["well", "food", "rice", "boil it"]


def test_each_row_is_scored_once_and_problems_are_reported_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(folder_of("llama", tmp_path / "rm"), input="text", max_length=16)
    scored: list[int] = []
    original = RewardModel.score

    def counting(self: RewardModel, rows: Any, **more: Any) -> Any:
        scored.append(len(rows))
        return original(self, rows, **more)

    monkeypatch.setattr(RewardModel, "score", counting)
    prompts = [Prompt(text) for text in ("How are you today? " * 9, "", "Hi")]
    completions = ["well", "", "you"]
    first = RewardScorer(model, tmp_path).score(prompts, completions, [None] * 3, ["a", "b", "c"])
    assert first[0][1] is None and None not in (first[0][0], first[0][2])
    assert sorted(problem.examples for problem in first[1]) == [["a"], ["b"]]
    again = RewardScorer(model, tmp_path)
    assert again.score(prompts, completions, [None] * 3, ["a", "b", "c"]) == first
    spaced = [f" {text}\n" for text in completions]
    assert again.score(prompts * 2, spaced * 2, [None] * 6, list("abcabc"))[0] == first[0] * 2
    assert again.score([prompts[2]], [completions[2]], [None], ["c"])[1] == []
    assert scored == [2]


@pytest.mark.parametrize("change", ["chat template", "form", "eos", "max_length"])
def test_rows_with_other_token_ids_are_scored_again(change: str, tmp_path: Path) -> None:
    # With a template the EOS token is also the padding token, which is not pooled.
    folder = folder_of("llama" if change == "eos" else "llama with a template", tmp_path / "rm")
    before: dict[str, Any] = {"input": "chat" if change == "chat template" else "text"}
    changes: dict[str, dict[str, Any]] = {
        "form": {"input": "chat"},
        "eos": {"eos": True},
        "max_length": {"max_length": 8},
    }
    prompts = [Prompt(prompt.text() * 9) for prompt in PROMPTS]
    old = RewardScorer(load(folder, **before), tmp_path).score(prompts, REPLIES, [None] * 4, REPLIES)[0]
    changed = load(folder, **before | changes.get(change, {}))
    if change == "chat template":
        changed.tokenizer.chat_template = CHATML.replace("<|im_start|>", "Turn of ", 1)
        changed = RewardModel(changed.model, changed.tokenizer, changed.settings)
    new = RewardScorer(changed, tmp_path).score(prompts, REPLIES, [None] * 4, REPLIES)[0]
    assert new == pytest.approx(changed.score(changed.tokenize(prompts, REPLIES)), abs=TOLERANCE)
    assert new != pytest.approx(old, abs=TOLERANCE)


def test_a_file_belongs_to_weights_config_and_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("llama", tmp_path / "rm")
    model = load(folder, input="text")
    file = RewardScorer(model, tmp_path).file
    moved = load(Path(shutil.copytree(folder, tmp_path / "moved")), input="text")
    assert RewardScorer(moved, tmp_path).file == file
    moved.model.config.pad_token_id = 7
    assert RewardScorer(moved, tmp_path).file != file
    other = load(folder_of("llama", tmp_path / "other", initializer_range=0.3), input="text")
    assert RewardScorer(other, tmp_path).file != file
    assert model.precision == "torch.float32 on cpu"
    monkeypatch.setattr(RewardModel, "precision", "bfloat16 on cuda")
    assert RewardScorer(model, tmp_path).file != file
