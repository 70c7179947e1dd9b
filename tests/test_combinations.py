"""The few combinations that stand for a full product."""

from __future__ import annotations

from combinations import combinations, covering
from tiny import ARCHITECTURES, CONTROLS


def test_each_value_is_in_the_few() -> None:
    dimensions = [list(ARCHITECTURES), list(CONTROLS), ["first", "before_response"]]
    few = covering(dimensions)
    assert len(few) == len(ARCHITECTURES)
    assert [set(column) for column in zip(*few, strict=True)] == [set(values) for values in dimensions]


def test_the_others_are_slow() -> None:
    mark = combinations(letter="abc", number=(1, 2))
    names, parameters = mark.args
    assert names == "letter,number"
    assert len(parameters) == 6
    assert sum(bool(parameter.marks) for parameter in parameters) == 3
