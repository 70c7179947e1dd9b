"""Rows that are dropped and kept, and whether the report counts every row."""

from __future__ import annotations

import pytest

from meetlm.config.errors import DataError
from meetlm.data.example import Example, Origin, Prompt, Turn, UnfilteredRows, as_reply
from meetlm.data.filters import ExampleTokens, filter_eval, filter_train, prompt_overlap
from meetlm.data.prompts import HeldOutPrompt, distinct, within


def make(
    line: int, prompt: str, chosen: str, rejected: str, other: str | None = None, group: str | None = None
) -> Example:
    asked = None if other is None else Prompt(other)
    origin = Origin("x.jsonl", line)
    sides = as_reply(chosen), as_reply(rejected)
    return Example.of_pair(Prompt(prompt), *sides, group or prompt, origin, other_prompt=asked)


def letters(example: Example) -> ExampleTokens:
    return ExampleTokens(len(example.prompt.text()), tuple(len(reply.content) for reply in example.replies))


def num_letters(prompt: Prompt) -> int:
    return len(prompt.text())


ROWS = [
    make(1, "p", " a", " b"),
    make(2, "p", " a", " b", other="q"),
    make(3, "p", " \n", " b"),
    make(4, "p", " a", ""),
    make(5, "p", " a", " a"),
    make(6, "p", " a", " b"),
    make(7, "p", " b", " a"),
    make(8, "ppppp", " a", " bbbb"),
    make(9, "ppppp", " aaaa", " bbb"),
    make(10, "pppp", " a", " bbbbb"),
    make(11, "", " a", " b"),
]


def test_train_by_hand() -> None:
    remaining, report = filter_train(UnfilteredRows(ROWS, []), letters, max_length=10)
    assert [example.origin.line for example in remaining] == [1, 7, 8, 9, 10, 11]
    assert report.to_dict() == {
        "file": "x.jsonl",
        "total": 11,
        "kept": 6,
        "groups": 4,
        "beyond_limit": 0,
        "dropped": {
            "sides_differ": {"count": 1, "lines": [2]},
            "empty_reply": {"count": 2, "lines": [3, 4]},
            "identical_replies": {"count": 1, "lines": [5]},
            "duplicate": {"count": 1, "lines": [6]},
        },
        "odd": {
            "contradiction": {"count": 1, "lines": [7]},
            "empty_prompt": {"count": 1, "lines": [11]},
        },
        "other_split_rows": {"count": 0, "lines": []},
    }


def test_rows_that_state_another_split_are_counted() -> None:
    others = [Origin("x.jsonl", line) for line in range(20, 27)]
    for account in (
        filter_train(UnfilteredRows(ROWS, others), letters, 10)[1],
        filter_eval(UnfilteredRows(ROWS, others), letters, 10)[1],
    ):
        assert account.to_dict()["other_split_rows"] == {"count": 7, "lines": [20, 21, 22, 23, 24]}
        assert account.total == len(ROWS)
        assert "  left out: 7, rows of another split (lines 20, 21, 22, 23, 24, …)" in account.lines()


def test_train_length_is_of_the_prompt_and_the_longer_reply() -> None:
    remaining, report = filter_train(UnfilteredRows(ROWS[:1] + ROWS[7:10], []), letters, max_length=9)
    assert [example.origin.line for example in remaining] == [1]
    assert report.dropped["too_long"].lines == [8, 9, 10]


def test_eval_by_hand() -> None:
    remaining, report = filter_eval(UnfilteredRows(ROWS, []), letters, max_length=4)
    assert [example.origin.line for example in remaining] == [1, 10, 11]
    counts = {name: (tally.count, tally.lines) for name, tally in report.dropped.items()}
    assert counts == {
        "sides_differ": (1, [2]),
        "empty_reply": (2, [3, 4]),
        "identical_replies": (1, [5]),
        "repeated_prompt": (3, [6, 7, 9]),
        "too_long": (1, [8]),
    }


def test_prompts_alone_by_hand() -> None:
    rows = [HeldOutPrompt(row.prompt, row.replies[0], row.origin) for row in ROWS[1:5] + ROWS[7:]]

    def lines(*both: list[HeldOutPrompt]) -> tuple[list[int], ...]:
        return tuple([row.origin.line for row in rows] for rows in both)

    by_id, again = distinct(rows)
    firsts = list(by_id.values())
    assert lines(firsts, again) == ([2, 8, 10, 11], [3, 4, 5, 9])
    assert lines(*within(firsts, num_letters, max_length=4)) == ([2, 10, 11], [8])
    assert lines(*within(firsts, num_letters, max_length=4, limit=1)) == ([2], []), (
        "rows beyond the limit are not tokenised"
    )
    with pytest.raises(DataError, match=r"field 'data\.max_length': none of the 3 prompts has at most 0 tokens"):
        within(firsts[:-1], num_letters, max_length=0)


def test_equal_prompts_are_merged_with_the_first_chosen_reply() -> None:
    asked = [("Hi", None), ("Ho", None), (" Hi\n", "first"), ("Hi", "second"), ("Ho", None)]
    rows = [
        HeldOutPrompt(Prompt(prompt), chosen and as_reply(chosen), Origin("x.jsonl", line))
        for line, (prompt, chosen) in enumerate(asked, 1)
    ]
    message = Prompt((Turn("user", "Hi"),))
    rows.append(HeldOutPrompt(message, as_reply("to a message"), Origin("x.jsonl", 6)))
    by_id, again = distinct(rows)
    assert [(row.prompt, row.chosen, row.origin.line) for row in by_id.values()] == [
        (Prompt("Hi"), as_reply("first"), 1),
        (Prompt("Ho"), None, 2),
        (message, as_reply("to a message"), 6),
    ]
    assert [row.origin.line for row in again] == [3, 4, 5]
    assert list(by_id) == [row.prompt.id for row in by_id.values()]


def test_eval_with_pairs_uses_the_first_valid_row_of_a_prompt() -> None:
    remaining, _ = filter_eval(UnfilteredRows(ROWS[2:6], []), letters, max_length=4)
    assert [example.origin.line for example in remaining] == [6]


def test_eval_keeps_one_row_per_group() -> None:
    rows = [
        make(1, "p", "a", "b", group="one"),
        make(2, "P", "a", "b", group="one"),
        make(3, "p", "a", "b", group="two"),
    ]
    assert [row.origin.line for row in filter_eval(UnfilteredRows(rows, []), letters, 9)[0]] == [1, 3]


def test_the_limit_counts_kept_rows_and_reports_the_others() -> None:
    looked_at = []

    def lengths(example: Example) -> ExampleTokens:
        looked_at.append(example.origin.line)
        return letters(example)

    remaining, report = filter_train(UnfilteredRows(ROWS, []), lengths, max_length=10, limit=3)
    assert [example.origin.line for example in remaining] == [1, 7, 8]
    assert looked_at == [1, 7, 8], "rows beyond the limit are not tokenised"
    assert report.beyond_limit == 3
    assert report.kept + sum(tally.count for tally in report.dropped.values()) + report.beyond_limit == 11
    assert filter_train(UnfilteredRows(ROWS, []), letters, 10, limit=6)[1].beyond_limit == 0
    remaining, report = filter_eval(UnfilteredRows(ROWS, []), letters, 4, limit=1)
    assert ([example.origin.line for example in remaining], report.beyond_limit) == ([1], 10)


def test_lines_for_a_terminal() -> None:
    rows = [
        make(1, "p", " a", " b"),
        *(make(n, "p", "", " b") for n in range(2, 9)),
        make(9, "p", " b", " a"),
    ]
    report = filter_train(UnfilteredRows([*rows, make(10, "q", " a", " b")], []), letters, 10, limit=2)[1]
    assert report.lines() == [
        "x.jsonl: 2 of 10 rows kept, 1 distinct prompts",
        "  dropped: 7, a reply is empty (lines 2, 3, 4, 5, 6, …)",
        "  kept, but check: 1, an earlier row has the same replies in the opposite order (line 9)",
        "  not used: 1, after the limit was reached",
    ]


def test_conversations_are_compared_by_their_turns() -> None:
    ask, blank = Prompt((Turn("user", "hi"),)), as_reply(" ")
    answer, other = as_reply("yo"), as_reply("no")
    rows = [
        Example.of_pair(ask, first, second, "g", Origin("x", line))
        for line, (first, second) in enumerate([(answer, other), (answer, other), (answer, answer), (blank, other)], 1)
    ]
    remaining, report = filter_train(UnfilteredRows(rows, []), lambda _: ExampleTokens(1, (1, 1)), 9)
    assert remaining == rows[:1]
    assert list(report.dropped) == ["duplicate", "identical_replies", "empty_reply"]


def test_no_usable_row() -> None:
    with pytest.raises(DataError) as caught:
        filter_train(UnfilteredRows(ROWS[1:4], []), letters, 10)
    assert str(caught.value) == (
        "x.jsonl: none of the 3 rows is usable (1 left out: the two sides answer different prompts; "
        "2 left out: a reply is empty)"
    )
    with pytest.raises(DataError, match="none of the 1 rows is usable .1 left out: more tokens than --data.max_length"):
        filter_eval(UnfilteredRows(ROWS[9:10], []), letters, 3)
    with pytest.raises(DataError, match="the file has no rows"):
        filter_train(UnfilteredRows([], []), letters, 10)


def test_overlap_compares_groups() -> None:
    test = [make(20, "p", "x", "y"), make(21, "new", "x", "y"), make(22, "else", "x", "y", group="ppppp")]
    assert [row.origin.line for row in prompt_overlap(ROWS, test)] == [20, 22]
    assert prompt_overlap(ROWS, test[1:2]) == []
