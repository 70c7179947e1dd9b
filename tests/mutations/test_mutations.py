"""The mutations still apply to the code, and name tests that exist."""

from __future__ import annotations

from pathlib import Path

import meetlm
from mutations import MUTATIONS

SOURCE, TESTS = Path(meetlm.__file__).parent, Path(__file__).parents[1]


def test_each_mutation_applies_to_the_code() -> None:
    counts = {mutation.name: (SOURCE / mutation.file).read_text().count(mutation.old) for mutation in MUTATIONS}
    assert {name: count for name, count in counts.items() if count != 1} == {}
    assert [mutation.name for mutation in MUTATIONS if mutation.old == mutation.new] == []


def test_each_mutation_has_its_own_name_and_tests() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 20
    missing = [test for mutation in MUTATIONS for test in mutation.tests if not (TESTS / test.split("::")[0]).is_file()]
    assert missing == []
