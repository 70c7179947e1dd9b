"""Levels as a user gives them: names, numbers on the scale from worst to best, weights."""

from __future__ import annotations

from typing import Any

import pytest

from meetlm.config.errors import ConfigError
from meetlm.run.levels import level_text, parse_level, resolve_level


@pytest.mark.parametrize(
    ("text", "level"),
    [
        (None, None),
        ("", None),
        ("good", "good"),
        ("0.7", 0.7),
        ("-1", -1.0),
        ("good=1.5,bad=-0.5", {"good": 1.5, "bad": -0.5}),
        (" a = 1 ", {"a": 1.0}),
    ],
)
def test_parse_level(text: str | None, level: Any) -> None:
    assert parse_level(text) == level
    if level:
        assert parse_level(level_text(level)) == level


def test_a_weight_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="--level 'good=x': expected a name, a number, or weights"):
        parse_level("good=x")


@pytest.mark.parametrize(
    ("number", "level"),
    [
        (0, "bad"),
        (1, "good"),
        (1.0, "good"),
        (0.7, {"bad": 0.3, "good": 0.7}),
        (1.5, {"bad": -0.5, "good": 1.5}),
        (-0.25, {"bad": 1.25, "good": -0.25}),
    ],
)
def test_a_number_is_a_place_between_worst_and_best(number: float, level: Any) -> None:
    assert resolve_level(["bad", "good"], number) == level


def test_a_number_interpolates_the_two_nearest_of_many_levels() -> None:
    levels = ["q0", "q1", "q2", "q3", "q4"]
    assert [resolve_level(levels, n / 4) for n in range(5)] == levels
    assert resolve_level(levels, 0.375) == {"q1": 0.5, "q2": 0.5}
    assert resolve_level(levels, 1.25) == {"q3": -1.0, "q4": 2.0}


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ("god", "unknown level 'god'; did you mean 'good'"),
        ({"good": 1, "bat": 1}, "unknown level 'bat'; did you mean 'bad'"),
        ({}, "expected names with finite numbers"),
        ({"good": "1"}, "expected names with finite numbers"),
        ({"good": True}, "expected names with finite numbers"),
        (float("inf"), "level inf: expected a name, a finite number"),
        (True, "level True: expected a name, a finite number"),
        (["good"], "expected a name, a finite number"),
    ],
)
def test_wrong_levels_are_refused(level: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_level(["bad", "good"], level)
    with pytest.raises(ConfigError, match="one level .good. and so no scale"):
        resolve_level(["good"], 0.5)
