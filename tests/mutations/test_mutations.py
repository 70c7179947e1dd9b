"""The mutations still apply to the code, and name tests that exist."""

from __future__ import annotations

from pathlib import Path

import meetlm
from mutations import MUTATIONS

SOURCE, TESTS = Path(meetlm.__file__).parent, Path(__file__).parents[1]


def test_each_mutation_applies_to_the_code() -> None:
    counts = {one.name: (SOURCE / one.file).read_text().count(one.old) for one in MUTATIONS}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    assert [one.name for one in MUTATIONS if one.old == one.new] == []


def test_each_mutation_has_its_own_name_and_tests() -> None:
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS) >= 20
    missing = [test for one in MUTATIONS for test in one.tests if not (TESTS / test.split("::")[0]).is_file()]
    assert missing == []
