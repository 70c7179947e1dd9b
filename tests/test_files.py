"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from meetlm.config.files import write_atomic


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    path.write_text("old")
    write_atomic(path, "dépêche\n")
    assert path.read_bytes() == "dépêche\n".encode()
    assert [file.name for file in tmp_path.iterdir()] == ["note.json"]
