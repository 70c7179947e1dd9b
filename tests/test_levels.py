"""Levels as a user gives them: names, numbers on the scale from worst to best, weights."""

from __future__ import annotations

from typing import Any

import pytest

from meetlm.config.errors import ConfigError
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.run.levels import change_level, level_text, levels_text, parse_level, resolve_level

SPACE = LevelSpace(
    (Attribute("tone", ("casual", "formal"), is_ordered=False), Attribute("length", ("brief", "medium", "detailed")))
)


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
        ("tone=formal", {"tone": "formal"}),
        ("tone=formal,length=0.7", {"tone": "formal", "length": 0.7}),
        ("tone=formal=1.3,tone=casual=-0.3", {"tone=formal": 1.3, "tone=casual": -0.3}),
    ],
)
def test_parse_level(text: str | None, level: Any) -> None:
    assert parse_level(text) == level
    if level:
        assert parse_level(level_text(level)) == level


@pytest.mark.parametrize("text", ["good,bad=1", "=1", "good=", "good=1,,bad=2"])
def test_a_part_without_name_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--level '{text}': expected a name, a finite number, weights"):
        parse_level(text)


def test_a_name_that_is_stated_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tone' is given twice"):
        parse_level("tone=formal,tone=casual")


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("tone=formal", {"tone=formal": 1.0}),
        ("tone=formal,length=brief", {"tone=formal": 1.0, "length=brief": 1.0}),
        ("length=0.25", {"length=brief": 0.5, "length=medium": 0.5}),
        ("length=1", {"length=detailed": 1.0}),
        ("length=1.25,tone=casual", {"length=medium": -0.5, "length=detailed": 1.5, "tone=casual": 1.0}),
        ("tone=formal=1.3,tone=casual=-0.3", {"tone=formal": 1.3, "tone=casual": -0.3}),
    ],
)
def test_levels_by_attribute(text: str, weights: dict[str, float]) -> None:
    level = parse_level(text)
    assert level is not None and resolve_level(SPACE, level) == weights
    again = parse_level(level_text(weights))
    assert again is not None and resolve_level(SPACE, again) == weights


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({"tone": "formel"}, "level 'formel' of tone is unknown; did you mean 'formal'"),
        ({"tono": "formal"}, "level 'tono' is unknown; did you mean 'tone'"),
        (
            {"tone": 0.5},
            r"level tone=0.5: expected the name of a level, since the levels of tone \(casual, .* have no order",
        ),
        ({"length": float("nan")}, "level length=nan: expected the name of a level or a finite number"),
        ({"tone=formal": "x"}, "level 'tone=formal' has the weight 'x'; expected a finite number"),
        (0.7, r"level 0.7: there are 2 attributes \(tone, length\); name one, as in tone=0.7"),
        ("formal", "level 'formal' is unknown; did you mean 'tone=formal'"),
    ],
)
def test_wrong_levels_by_attribute_are_refused(level: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_level(SPACE, level)


def test_a_change_keeps_the_other_attributes() -> None:
    both = {"tone=formal": 1.0, "length=brief": 1.0}
    assert change_level(SPACE, both, {"tone=casual": 1.0}) == {"length=brief": 1.0, "tone=casual": 1.0}
    assert change_level(SPACE, both, {"tone=casual": 1.0, "length=detailed": 1.0}) == {
        "tone=casual": 1.0,
        "length=detailed": 1.0,
    }
    pair = LevelSpace.of_names("bad", "good")
    assert change_level(pair, "good", {"good": 1.5, "bad": -0.5}) == {"good": 1.5, "bad": -0.5}
    assert change_level(pair, {"good": 1.5, "bad": -0.5}, "bad") == "bad"


def test_all_levels_in_words() -> None:
    assert levels_text(SPACE) == "tone: casual, formal; length: brief, medium, detailed (worst first)"
    assert levels_text(LevelSpace.of_names("bad", "good")) == "bad, good (worst first)"


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
        ("god", "level 'god' is unknown; did you mean 'good'"),
        ({"good": 1, "bat": 1}, "level 'bat' is unknown; did you mean 'bad'"),
        ({}, "level {}: expected a name"),
        ({"good": "1"}, "level 'good' has the weight '1'; expected a finite number"),
        ({"good": True}, "level 'good' has the weight True"),
        (float("inf"), "level inf: expected a name, a finite number"),
        (True, "level True: expected a name, a finite number"),
        (["good"], "expected a name, a finite number"),
    ],
)
def test_wrong_levels_are_refused(level: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_level(["bad", "good"], level)
    with pytest.raises(ConfigError, match="the only level is good, so there is no scale"):
        resolve_level(["good"], 0.5)
