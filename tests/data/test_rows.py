"""Files, folders and the hub: the rows, and the messages if they cannot be read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from meetlm.config.errors import ConfigError, DataError
from meetlm.data.rows import read_file
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES, read_examples

PAIR = {"prompt": "Say hi.", "chosen": " Hi!", "rejected": " No."}
LINE = json.dumps(PAIR)


def rows(file: Path) -> list[tuple[dict[str, Any], int]]:
    return [(dict(row.fields), row.origin.line) for row in read_file(file)]


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def message(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        rows(file)
    return str(caught.value)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what ``datasets`` writes inside the test's own folder, and the hub out of reach."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


class TestFiles:
    def test_json_lines_keep_the_number_of_the_line_across_blank_ones(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl", f'{LINE}\n\n  \n{{"chosen": "x\u2028y"}}\n')
        assert rows(file) == [(PAIR, 1), ({"chosen": "x\u2028y"}, 4)]

    def test_gzip_and_byte_order_mark_and_windows_line_ends(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl.gz", gzip.compress(f"\ufeff{LINE}\r\n{LINE}\r\n".encode()))
        assert rows(file) == [(PAIR, 1), (PAIR, 2)]

    def test_json_list(self, tmp_path: Path) -> None:
        assert rows(write(tmp_path / "a.json", json.dumps([PAIR, {"b": 2}], indent=1))) == [
            (PAIR, 1),
            ({"b": 2}, 2),
        ]

    def test_json_lines_under_the_name_json(self, tmp_path: Path) -> None:
        assert rows(write(tmp_path / "batch3.json", f"{LINE}\n{LINE}\n")) == [(PAIR, 1), (PAIR, 2)]

    def test_csv_numbers_the_line_a_record_starts_at(self, tmp_path: Path) -> None:
        text = 'prompt,chosen\n"two\nlines, a comma\x0b",a\n\nlast," ""b"""\n'
        assert rows(write(tmp_path / "a.csv", text)) == [
            ({"prompt": "two\nlines, a comma\x0b", "chosen": "a"}, 2),
            ({"prompt": "last", "chosen": ' "b"'}, 5),
        ]

    def test_csv_cells_longer_than_the_library_allows(self, tmp_path: Path) -> None:
        [(fields, _)] = rows(write(tmp_path / "a.csv", "prompt\n" + "x" * 200_000 + "\n"))
        assert len(fields["prompt"]) == 200_000

    def test_parquet_with_nested_columns(self, tmp_path: Path) -> None:
        data = [
            {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}]},
            {"prompt": "c", "chosen": None},
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(data), tmp_path / "a.parquet")
        assert rows(tmp_path / "a.parquet") == [(data[0], 1), (data[1], 2)]


class TestBadFiles:
    def test_bad_json(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.jsonl", LINE + '\n{"prompt": "x",}\n')
        assert message(file).startswith(f"{file}:2: bad JSON: ") and "(column 16); expected" in message(file)
        assert message(file).endswith("expected one object per line, or a list of objects")

    def test_bad_json_in_a_list_names_the_line_of_the_file(self, tmp_path: Path) -> None:
        assert "a.json:3: bad JSON" in message(write(tmp_path / "a.json", '[\n{"a": 1},\n{"a" 1}]'))

    @pytest.mark.parametrize(
        ("text", "kind"), [("[1]", "a list"), ("null", "null"), ('"x"', "a string"), ("3", "an integer")]
    )
    def test_not_an_object(self, tmp_path: Path, text: str, kind: str) -> None:
        file = write(tmp_path / "a.jsonl", f"{LINE}\n{text}\n")
        assert message(file) == f"{file}:2: is {kind}; expected an object"

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
    def test_invalid_utf8_names_line_and_byte(self, tmp_path: Path, name: str) -> None:
        file = write(tmp_path / name, b"[\n" * (name == "a.json") + b'{"a": 1}\n{"a": "\xff"}\n')
        line = 3 if name == "a.json" else 2
        assert message(file) == f"{file}:{line}: invalid UTF-8: byte 0xff; expected UTF-8 text"

    def test_truncated_gzip(self, tmp_path: Path) -> None:
        whole = gzip.compress((LINE + "\n").encode() * 9)
        assert "cut.jsonl.gz:10: broken gzip data" in message(write(tmp_path / "cut.jsonl.gz", whole[:-9]))

    def test_csv_with_too_many_cells(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.csv", "prompt,chosen\na,b\na,b,c\n")
        assert message(file) == f"{file}:3: has 3 cells; expected 2, as in the header"

    def test_csv_with_an_open_quote(self, tmp_path: Path) -> None:
        assert "a.csv:2: bad CSV" in message(write(tmp_path / "a.csv", 'prompt\n"a\nb\n'))

    def test_false_parquet(self, tmp_path: Path) -> None:
        assert "a.parquet: cannot be read as Parquet" in message(write(tmp_path / "a.parquet", "no"))

    @pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
    def test_no_rows(self, tmp_path: Path, name: str) -> None:
        file = write(tmp_path / name, "prompt,chosen\n" if name == "a.csv" else "\n")
        assert message(file) == f"{file}: has no rows; expected at least one"

    def test_unknown_ending_and_missing_file(self, tmp_path: Path) -> None:
        known = "one of .jsonl, .jsonl.gz, .json, .json.gz, .csv, .csv.gz, .parquet"
        assert message(tmp_path / "a.txt") == f"{tmp_path}/a.txt: unknown file type; expected {known}"
        assert f"a.jsonl: no such file (looked for {tmp_path}/a.jsonl)" in message(tmp_path / "a.jsonl")


class TestPlaces:
    def read(self, split: Any = "train", **settings: Any) -> list[tuple[str, int]]:
        examples = read_examples(DataSettings(source="pairs", **settings), split).rows
        return [(example.prompt.text(), example.origin.line) for example in examples]

    def test_one_file_is_the_training_data(self, tmp_path: Path) -> None:
        file = str(write(tmp_path / "a.jsonl", LINE))
        assert self.read(path=file) == [("Say hi.", 1)]
        with pytest.raises(DataError, match=r"a\.jsonl: no held-out data; expected --data\.eval_file FILE"):
            self.read("eval", path=file)

    def test_explicit_files_stand_inside_the_folder_or_anywhere(self, tmp_path: Path) -> None:
        write(tmp_path / "d" / "a.jsonl", LINE)
        other = write(tmp_path / "e" / "b.jsonl", LINE.replace("hi", "bye"))
        place = {"path": str(tmp_path / "d"), "train_file": "a.jsonl", "eval_file": str(other)}
        assert self.read(**place) == [("Say hi.", 1)]
        assert self.read("eval", **place) == [("Say bye.", 1)]
        assert self.read("eval", train_file=str(other), eval_file=str(other)) == [("Say bye.", 1)]

    def test_a_folder_prefers_its_subset_and_takes_split_names(self, tmp_path: Path) -> None:
        write(tmp_path / "train.jsonl", LINE)
        write(tmp_path / "part" / "validation.jsonl.gz", gzip.compress(LINE.replace("hi", "yo").encode()))
        write(tmp_path / "part" / "train.csv", "prompt,chosen,rejected\np,a,b\n")
        assert self.read(path=str(tmp_path)) == [("Say hi.", 1)]
        assert self.read(path=str(tmp_path), subset="part") == [("p", 2)]
        rows = self.read("eval", path=str(tmp_path), subset="part", eval_split="validation")
        assert rows == [("Say yo.", 1)]

    @pytest.mark.usefixtures("caches")
    def test_a_subset_that_is_not_there_is_never_the_whole_folder(self, tmp_path: Path) -> None:
        root = tmp_path / "hh"
        for place in ("harmless-base", "helpful-base", ".git"):
            write(root / place / "train.jsonl", LINE)
        with pytest.raises(DataError) as caught:
            self.read(path=str(root), subset="harmles-base")
        assert str(caught.value) == (
            f"{root}: field 'data.subset': contains no folder 'harmles-base'; did you mean 'harmless-base'?"
        )
        write(root / "train.jsonl", LINE)
        with pytest.raises(DataError, match="contains no folder 'x'; known: harmless-base, helpful-base"):
            self.read(path=str(root), subset="x")
        with pytest.raises(DataError, match="contains no folder 'x', nor any other folder"):
            self.read(path=str(root / "helpful-base"), subset="x")
        with pytest.raises(DataError, match=r"helpful-base \[test\]: cannot be loaded"):
            write(root / "test.jsonl", LINE)
            self.read("eval", path=str(root), subset="helpful-base")

    def test_a_folder_may_be_the_subset_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write(tmp_path / "part" / "train.jsonl", LINE)
        assert self.read(path=str(tmp_path / "part"), subset="part") == [("Say hi.", 1)]
        monkeypatch.chdir(tmp_path / "part")
        assert self.read(path=".", subset="part") == [("Say hi.", 1)]

    @pytest.mark.usefixtures("caches")
    def test_other_layouts_of_the_hub_go_through_datasets(self, tmp_path: Path) -> None:
        (tmp_path / "set" / "part").mkdir(parents=True)
        table = pyarrow.Table.from_pylist([PAIR, {**PAIR, "prompt": "Second."}])
        pyarrow.parquet.write_table(table, tmp_path / "set" / "part" / "train-00000-of-00001.parquet")
        folder = str(tmp_path / "set")
        examples = read_examples(DataSettings(source="pairs", path=folder, subset="part"), "train").rows
        assert [(example.prompt.text(), str(example.origin)) for example in examples] == [
            ("Say hi.", f"{folder}/part [train]:1"),
            ("Second.", f"{folder}/part [train]:2"),
        ]
        with pytest.raises(DataError, match=r'part \[test\]: cannot be loaded.*looked for.*Unknown split "test"'):
            self.read("eval", path=folder, subset="part")

    @pytest.mark.usefixtures("caches")
    def test_all_subsets_of_a_local_copy_of_hh(self, tmp_path: Path) -> None:
        for name in ("harmless-base", "helpful-base"):
            row = {side: f"\n\nHuman: {name}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
            write(tmp_path / "hh" / name / "train.jsonl.gz", gzip.compress(json.dumps(row).encode()))
            write(tmp_path / "hh" / name / "test.jsonl.gz", gzip.compress(json.dumps(row).encode()))
        examples = read_examples(DataSettings(source="hh", path=str(tmp_path / "hh")), "train").rows
        assert [(example.prompt.text(), example.origin.line) for example in examples] == [
            ("\n\nHuman: harmless-base\n\nAssistant:", 1),
            ("\n\nHuman: helpful-base\n\nAssistant:", 2),
        ]

    @pytest.mark.usefixtures("caches")
    def test_an_empty_folder_lists_the_expected_files(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        with pytest.raises(DataError) as caught:
            self.read(path=str(tmp_path / "set"))
        assert f"{tmp_path}/set/train{{.jsonl,.jsonl.gz,.json,.json.gz,.csv,.csv.gz,.parquet}}" in str(caught.value)

    @pytest.mark.usefixtures("caches")
    def test_a_hub_out_of_reach(self) -> None:
        with pytest.raises(DataError) as caught:
            self.read(path="nobody/no-such-data", subset="part")
        assert str(caught.value).startswith("nobody/no-such-data/part [train]: cannot be loaded: ")
        assert str(caught.value).endswith("the hub that this machine can reach, or a local file or folder")

    @pytest.mark.parametrize("path", ["./missing", "/missing/x", "a/b/c", "data/missing.jsonl"])
    def test_a_missing_path_is_not_taken_for_a_hub_name(self, path: str) -> None:
        with pytest.raises(DataError, match="no such file or folder"):
            self.read(path=path)

    def test_an_unknown_source_gets_a_suggestion(self) -> None:
        with pytest.raises(ConfigError, match="unknown --data.source 'pair'; did you mean 'pairs'"):
            read_examples(DataSettings(source="pair", path="x"), "train")

    def test_settings_name_a_place(self) -> None:
        with pytest.raises(ValidationError, match="no data: set data.path"):
            DataSettings(source="pairs")

    def test_only_hh_has_stop_strings(self) -> None:
        assert {name: SOURCES[name].stop for name in SOURCES} == {
            "feedback": (),
            "hh": ("\n\nHuman:",),
            "pairs": (),
            "summarize": (),
        }
