"""The cache of reference log-probs is used only for the same model and rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from meetlm.data.encoding import Encoded
from meetlm.data.levels import PAIR_LEVELS
from meetlm.policy import reference as module
from meetlm.policy.policy import Policy
from meetlm.policy.reference import reference_logps
from reporters import RecordingReporter
from tiny import LENGTHS, sequences, tiny_policy

Rows = Sequence[Encoded]
POISON = 7.0


def policy_of(kind: str = "lora", **changes: Any) -> Policy:
    return tiny_policy("llama", kind, dtype=torch.float32, **changes)


def poisoned(policy: Policy, rows: Rows, folder: Path) -> None:
    """Compute once, then overwrite the file with impossible values."""
    reference_logps(policy, rows, folder)
    (file,) = folder.iterdir()
    save_file({"logps": torch.full((len(rows),), POISON, dtype=torch.float64)}, file)


def used(policy: Policy, rows: Rows, folder: Path) -> bool:
    """Return whether the poisoned file is used; otherwise the values must be right."""
    logps = reference_logps(policy, rows, folder)
    if bool((logps == POISON).all()):
        return True
    assert torch.equal(logps, policy.score(rows)[0])
    return False


def test_computed_once_and_cached(tmp_path: Path) -> None:
    policy, reporter = policy_of(), RecordingReporter()
    rows = sequences(policy, LENGTHS)
    policy.train()
    logps = reference_logps(policy, rows, tmp_path, reporter=reporter)
    assert policy.training
    assert torch.equal(logps, policy.score(rows)[0])
    assert sum(reporter.counts) == len(rows)
    (file,) = tmp_path.iterdir()
    assert torch.equal(load_file(file)["logps"], logps)
    assert torch.equal(reference_logps(policy, rows, tmp_path, reporter=reporter), logps)
    assert sum(reporter.counts) == len(rows)  # nothing was scored again


def test_the_same_weights_and_rows_use_the_file(tmp_path: Path) -> None:
    poisoned(policy_of(), sequences(policy_of(), LENGTHS), tmp_path)
    other = policy_of()  # a new object with equal weights
    assert used(other, sequences(other, LENGTHS), tmp_path)


def move_lm(policy: Policy) -> None:
    policy.lm.get_input_embeddings().weight[200, 0] += 1e-3


def move_control(policy: Policy) -> None:
    next(policy.control.parameters())[1, 0] += 1e-3


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
@pytest.mark.parametrize("move", [move_lm, move_control])
def test_changed_weights_change_the_key(move: Callable[[Policy], None], kind: str, tmp_path: Path) -> None:
    policy = policy_of(kind)
    rows = sequences(policy, LENGTHS)
    poisoned(policy, rows, tmp_path)
    with torch.no_grad():
        move(policy)
    assert not used(policy, rows, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_control_settings_and_layout_change_the_key(tmp_path: Path) -> None:
    policy = policy_of(alpha=16)
    rows = sequences(policy, LENGTHS)
    poisoned(policy, rows, tmp_path)
    assert not used(policy_of(alpha=32), rows, tmp_path)  # equal weights, another scale
    assert not used(policy_of(alpha=16, layout="padded"), rows, tmp_path)  # other rounding
    assert used(policy_of(alpha=16), rows, tmp_path)


def other_token(rows: Rows) -> Rows:
    return [replace(rows[0], ids=(5, *rows[0].ids[1:])), *rows[1:]]


def other_border(rows: Rows) -> Rows:
    (span,) = rows[0].spans
    return [Encoded.of_one(rows[0].ids, span.start - 1, span.weights), *rows[1:]]


def other_level(rows: Rows) -> Rows:
    return [Encoded.of_one(rows[0].ids, rows[0].spans[0].start, PAIR_LEVELS.weights([1])), *rows[1:]]


def other_order(rows: Rows) -> Rows:
    return rows[::-1]


def fewer(rows: Rows) -> Rows:
    return rows[:-1]


@pytest.mark.parametrize("change", [other_token, other_border, other_level, other_order, fewer])
def test_other_rows_change_the_key(change: Callable[[Rows], Rows], tmp_path: Path) -> None:
    policy = policy_of()
    rows = sequences(policy, LENGTHS)
    poisoned(policy, rows, tmp_path)
    assert not used(policy, change(rows), tmp_path)


def bare(levels: int) -> Rows:
    """Return rows without a slot and with zero level weights."""
    plain = sequences(policy_of("none", levels=["only"]), LENGTHS, [0] * len(LENGTHS))
    return [Encoded.of_one(encoded.ids, encoded.spans[0].start, (0.0,) * levels) for encoded in plain]


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_a_control_does_not_matter_at_zero_level_weights(kind: str, tmp_path: Path) -> None:
    """The base model's log-probs, which every method of a sweep needs, are the same with any control."""
    policy = policy_of(kind)
    rows = bare(2)
    poisoned(policy, rows, tmp_path)
    with torch.no_grad():
        move_control(policy)
    assert used(policy, rows, tmp_path)
    for other, levels in ((policy_of("none", levels=["good"]), 1), (policy_of("text"), 2)):
        assert used(other, bare(levels), tmp_path)
    with torch.no_grad():
        move_lm(policy)
    assert not used(policy, rows, tmp_path)


def test_an_interrupted_write_leaves_no_incomplete_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_of()
    rows = sequences(policy, LENGTHS)

    def cut_off(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "save_file", cut_off)
        reference_logps(policy, rows, tmp_path)
    assert list(tmp_path.glob("*.safetensors")) == []
    logps = reference_logps(policy, rows, tmp_path)
    assert torch.equal(logps, policy.score(rows)[0])
    (file,) = tmp_path.iterdir()
    assert torch.equal(load_file(file)["logps"], logps)


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEETLM_CACHE", str(tmp_path))
    policy = policy_of()
    reference_logps(policy, sequences(policy, LENGTHS))
    assert [path.suffix for path in (tmp_path / "reference").iterdir()] == [".safetensors"]
