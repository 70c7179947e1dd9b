"""The few combinations that stand for a full product."""

from __future__ import annotations

from itertools import product

from combinations import covering, each_value
from tiny import ARCHITECTURES, CONTROLS


def test_each_value_is_in_the_few() -> None:
    dimensions = [list(ARCHITECTURES), list(CONTROLS), ["first", "before_response"]]
    few = covering(dimensions, 1)
    assert len(few) == len(ARCHITECTURES)
    assert [set(column) for column in zip(*few, strict=True)] == [set(values) for values in dimensions]


def test_each_pair_is_in_the_few() -> None:
    dimensions = ["abcd", (1, 2, 3), "xyz", (True, False)]
    few = covering(dimensions, 2)
    assert len(few) < 20
    for first, other in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        assert {(row[first], row[other]) for row in few} == set(product(dimensions[first], dimensions[other]))


def test_the_others_are_slow() -> None:
    mark = each_value(letter="abc", number=(1, 2))
    names, parameters = mark.args
    assert names == "letter,number"
    assert len(parameters) == 6
    assert sum(bool(parameter.marks) for parameter in parameters) == 3
