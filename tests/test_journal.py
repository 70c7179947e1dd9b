"""The journal: entries survive a kill, damaged lines are reported, and a different header starts a new journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from meetlm.config.journal import Journal


def test_entries_are_on_disk_at_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "journal.jsonl"
    first = Journal(path)
    assert not path.exists()
    first.append({"key": "a", "text": "è\u2028"})
    assert Journal(path).entries == [{"key": "a", "text": "è\u2028"}], "before it is closed"
    first.append({"key": "b"})
    first.close()
    with Journal(path) as again:
        again.append({"key": "c"})
    assert [entry["key"] for entry in Journal(path).entries] == ["a", "b", "c"]


@pytest.mark.parametrize("end", ['{"key": "b', '{"key": "b"}\n{"ke', "\x00\x00\n", "[1]\n"])
def test_damaged_lines_are_reported_and_appending_continues(end: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"key": "a"}\n' + end)
    with Journal(path) as journal:
        line = 3 if end.count("{") == 2 else 2
        assert journal.damaged == [f"{path}:{line}"]
        journal.append({"key": "last"})
    again = Journal(path)
    assert again.entries[0] == {"key": "a"} and again.entries[-1] == {"key": "last"}
    assert again.damaged == [f"{path}:{line}"]


def test_a_different_header_starts_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, {"of": "one"}) as journal:
        journal.append({"number": 0})
    with Journal(path, {"of": "one"}) as same:
        assert same.entries == [{"number": 0}]
        same.append({"number": 1})
    assert path.read_text().count("of") == 1
    with Journal(path, {"of": "other"}) as other:
        assert other.entries == []
        other.append({"number": 7})
    assert Journal(path, {"of": "other"}).entries == [{"number": 7}]
    path.write_text('{"of": "ot')
    with Journal(path, {"of": "other"}) as torn:
        torn.append({"number": 8})
    assert Journal(path, {"of": "other"}).entries == [{"number": 8}]
