"""Training, scoring, generation and export compute what ``recorded.json`` holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regression.record import CASES, RECORDED, RUNS, TrainingCase, recorded_run, trained_case

IN_F64, LOGGED, IN_F32 = 5e-6, 2e-5, 1e-4
"""Relative tolerances: of models in f64 (log-probs are f32), of what transformers logs, and of whole runs."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return dict(json.loads(RECORDED.read_text()))


def differences(expected: Any, actual: Any, tolerance: float, place: str = "") -> list[str]:
    """Return where two nested values differ; numbers may differ by ``tolerance``, relative or near 0 absolute."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        if expected.keys() != actual.keys():
            return [f"{place}: keys differ: {sorted(expected.keys() ^ actual.keys())}"]
        pairs = [(expected[key], actual[key], f"{place}/{key}") for key in expected]
    elif isinstance(expected, list) and isinstance(actual, list):
        if len(expected) != len(actual):
            return [f"{place}: {len(actual)} values, not {len(expected)}"]
        pairs = [(old, new, f"{place}/{i}") for i, (old, new) in enumerate(zip(expected, actual, strict=True))]
    elif isinstance(expected, float | int) and isinstance(actual, float | int):
        equal = actual == pytest.approx(expected, rel=tolerance, abs=tolerance)
        return [] if equal else [f"{place}: {actual!r}, not {expected!r}"]
    else:
        return [] if expected == actual else [f"{place}: {actual!r}, not {expected!r}"]
    return [line for old, new, where in pairs for line in differences(old, new, tolerance, where)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_is_as_recorded(case: TrainingCase, recorded: dict[str, Any], tmp_path: Path) -> None:
    expected, actual = recorded["cases"][case.name], trained_case(case, tmp_path / "case")
    for name in expected:
        tolerance = LOGGED if name in ("steps", "completions") else IN_F64
        assert differences(expected[name], actual[name], tolerance, name) == []
    assert expected.keys() == actual.keys()


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_as_recorded(name: str, recorded: dict[str, Any], tmp_path: Path) -> None:
    assert differences(recorded["runs"][name], recorded_run(name, tmp_path / "run"), IN_F32) == []


def test_differences_are_seen() -> None:
    assert differences({"a": [1.0, "x"]}, {"a": [1.0 + 1e-9, "x"]}, 1e-6) == []
    assert differences({"a": [1.0, "x"]}, {"a": [1.1, "y"]}, 1e-6) == ["/a/0: 1.1, not 1.0", "/a/1: 'y', not 'x'"]
    assert differences([1], [1, 2], 1e-6) == [": 2 values, not 1"]
    assert differences({"a": 1}, {"b": 1}, 1e-6) == [": keys differ: ['a', 'b']"]
