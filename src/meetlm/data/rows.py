"""Read the rows of a file, with line numbers: JSON lines, JSON lists, CSV and Parquet, also gzipped.

The formats of preference data are elsewhere. Nothing in a file is dropped: a line that cannot be read is an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from meetlm.config.errors import DataError
from meetlm.data.example import Origin

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file, with its line.

    Attributes:
        fields: JSON values by name: str, int, float, bool, None, list, dict.
        origin: File (or hub name) and 1-based line (JSON list, Parquet, hub: 1-based row).
        prefix: ``info.`` for the object inside the field ``info``, so that messages name ``info.post``.
    """

    fields: Mapping[str, Any]
    origin: Origin
    prefix: str = ""

    def text(self, field: str) -> str:
        """Return a string field; raise a ``DataError`` if it is missing or has another type."""
        value = self.value(field, "a string", str)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error("contains half of a surrogate pair", field=field, expected="valid Unicode") from None
        return value

    def number(self, field: str) -> int:
        """Return an integer field; true and false are not integers."""
        return self.value(field, "an integer", int)

    def items(self, field: str) -> list[Any]:
        """Return a list field."""
        return self.value(field, "a list", list)

    def inside(self, field: str) -> Row:
        """Return the object in ``field`` as a row."""
        return self.wrap(field, self.value(field, "an object", dict))

    def wrap(self, field: str, value: Mapping[str, Any]) -> Row:
        """Return ``value``, which is inside ``field``, as a row."""
        return replace(self, fields=value, prefix=f"{self.prefix}{field}.")

    def rename(self, columns: Mapping[str, str]) -> Row:
        """Return the row with its columns under other names.

        Args:
            columns: Column by name. ``a+b`` joins the texts of two columns by a blank line; an empty column removes the
                name from the row.
        """
        fields = dict(self.fields)
        for name, column in columns.items():
            parts = [column] if column in self.fields or not column else column.split("+")
            values = [
                self.value(part, f"a column, because --data.columns reads {name!r} from it", object)
                for part in parts
                if part
            ]
            if len(values) > 1:
                texts = [self.text(part) for part, value in zip(parts, values, strict=True) if value is not None]
                values = ["\n\n".join(text for text in texts if text.strip())]
            for part in (name, *parts):
                fields.pop(part, None)
            if values:
                fields[name] = values[0]
        return replace(self, fields=fields)

    def gather(self, attributes: Sequence[str]) -> Row:
        """Return the row with only these attributes as its feedback, in the field ``attributes``.

        Args:
            attributes: Names of columns, or of fields of an object in ``attributes``.
        """
        nested = self.fields.get("attributes")
        fields_and_nested = {**(nested if isinstance(nested, Mapping) else {}), **self.fields}
        values = {name: fields_and_nested[name] for name in attributes if name in fields_and_nested}
        used = {"label", "score", "level", *attributes}
        fields = {name: value for name, value in self.fields.items() if name not in used}
        return replace(self, fields={**fields, "attributes": values})

    def value(self, field: str, expected: str, kind: type[T]) -> T:
        """Return a field that must have a certain JSON type."""
        if field not in self.fields:
            names = ", ".join(sorted(map(str, self.fields))) or "none"
            expected = f"{expected}; fields of this row: {names}"
            if field in ("chosen", "rejected"):
                expected += f"; --data.columns {field}=COLUMN reads it from another column"
            raise self.error("is missing", field=field, expected=expected)
        value = self.fields[field]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"is {kind_of(value)}", field=field, expected=expected)
        return value

    def error(self, problem: str, *, field: str | None = None, expected: str | None = None) -> DataError:
        """Build (not raise) an error that names this row."""
        name = None if field is None else self.prefix + field
        return DataError(problem, file=self.origin.file, line=self.origin.line, field=name, expected=expected)


def kind_of(value: object) -> str:
    """Return the type of a JSON value in words, such as ``a list`` or ``null``."""
    names = {str: "a string", bool: "true or false", int: "an integer", float: "a number", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def read_file(file: Path) -> Iterator[Row]:
    """Yield the rows of a file. Its extension selects the reader; gzip and Parquet are recognised by their first bytes.

    Raises:
        DataError: The file does not exist, has an unknown type, or has no rows.
    """
    ending = next((ending for ending in READERS if file.name.endswith(ending)), None)
    if ending is None:
        raise DataError("unknown file type", file=str(file), expected=f"one of {', '.join(READERS)}")
    if not file.is_file():
        raise DataError(f"no such file (looked for {file.absolute()})", file=str(file))
    with _open(file) as stream:
        try:
            start = stream.read(12)
        except (EOFError, OSError, zlib.error):
            start = b""  # the reader reports it, with the line
    for mark, kind, remedy in _OTHER_KINDS:
        if start.startswith(mark):
            raise DataError(f"is {kind}", file=str(file), expected=remedy)
    return non_empty((_parquet if start[:4] == b"PAR1" else READERS[ending])(file), str(file))


_OTHER_KINDS = (
    (b"\xff\xfe", "UTF-16 text", "UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"\xfe\xff", "UTF-16 text", "UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "the file inside it, or the spreadsheet saved as CSV"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "the decompressed file"),
    (b"version http", "a Git LFS pointer", "the file itself (git lfs pull)"),
)
"""First bytes of unsupported files, their type, and what to do."""


def non_empty(rows: Iterator[Row], file: str) -> Iterator[Row]:
    """Yield the rows; raise an error if there are none."""
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise DataError("has no rows", file=file, expected="at least one")


def _open(file: Path) -> Any:
    """Open a file in binary mode; gzip is decompressed, whatever the name of the file."""
    with file.open("rb") as stream:
        is_gzip = stream.read(2) == b"\x1f\x8b"
    return (gzip.open if is_gzip else open)(file, "rb")


def _json_lines(file: Path) -> Iterator[Row]:
    number = 0
    with _open(file) as stream:
        try:
            for line in stream:
                for raw in (
                    line.removesuffix(b"\n").removesuffix(b"\r").split(b"\r")
                ):  # old Macs end lines with CR alone
                    number += 1
                    text = _decode(raw, file, number)
                    if text.strip():
                        yield _object(_json(text, file, number), file, number)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"broken gzip data: {error}", file=str(file), line=number + 1) from None


def _json_file(file: Path) -> Iterator[Row]:
    """Yield the rows of a list of objects, of one object, or of JSON lines (as in many ``.json`` files on the hub)."""
    text = _text(file)
    if text.lstrip().startswith("["):
        for number, value in enumerate(_json(text, file, 1), start=1):
            yield _object(value, file, number)
        return
    try:
        value, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError):
        end = 0
    if not end or text.lstrip()[end:].strip():
        yield from _json_lines(file)
        return
    row = _object(_json(text, file, 1), file, 1)
    lists = [name for name, value in row.fields.items() if isinstance(value, list) and len(value) > 1]
    if lists and not {"prompt", "chosen", "messages", "summaries"} & row.fields.keys():
        problem = f"is one object, with a list in {lists[0]!r}"
        raise DataError(problem, file=str(file), expected="the list of rows alone, or one row per line")
    yield row


def _json(text: str, file: Path, line: int) -> Any:
    def error(problem: str, expected: str, error_line: int = line) -> DataError:
        return DataError(problem, file=str(file), line=error_line, expected=expected)

    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as invalid:
        problem = f"bad JSON: {invalid.msg} (column {invalid.colno})"
        raise error(problem, "one object per line, or a list of objects", line + invalid.lineno - 1) from None
    except _DuplicateKey as key:
        raise error(f"has the key {key} twice in one object", "every key once") from None
    except RecursionError:
        raise error("bad JSON: too deeply nested", "messages and fields nested a few levels deep") from None
    except ValueError:
        raise error("bad JSON: a number with thousands of digits", "shorter numbers, or strings") from None


class _DuplicateKey(Exception):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKey(repr(next(name for name in names if names.count(name) > 1)))
    return fields


def _object(value: object, file: Path, line: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"is {kind_of(value)}", file=str(file), line=line, expected="an object")
    return Row(value, Origin(str(file), line))


def _text(file: Path) -> str:
    with _open(file) as stream:
        try:
            return _decode(stream.read(), file, 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"broken gzip data: {error}", file=str(file)) from None


def _decode(raw: bytes, file: Path, line: int) -> str:
    """Decode UTF-8 (a byte order mark is skipped); ``line`` is the line that ``raw`` starts at."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        error_line = line + raw[: error.start].count(b"\n")
        problem = f"invalid UTF-8: byte 0x{raw[error.start]:02x}"
        raise DataError(problem, file=str(file), line=error_line, expected="UTF-8 text") from None


def _csv(file: Path) -> Iterator[Row]:
    """Yield the rows of a CSV file with a header; ``line`` is the line at which a record starts."""
    csv.field_size_limit(2**31 - 1)  # articles are longer than the 128 KiB allowed by default
    stream = io.StringIO(_text(file), newline="")
    first = stream.readline()
    declared = first.strip()[4:] if first[:4].lower() == "sep=" else ""  # written by Excel
    skipped = 1 if declared else 0
    if not declared:
        stream.seek(0)
    reader = csv.reader(stream, delimiter=declared or _delimiter(first), strict=True)
    header: list[str] | None = None
    start = skipped + 1
    try:
        for cells in reader:
            if header is None:
                header = cells
                if repeated := sorted({name for name in header if header.count(name) > 1}):
                    problem = f"the header has {repeated[0]!r} twice"
                    raise DataError(problem, file=str(file), line=start, expected="every column once")
            elif cells:
                if len(cells) != len(header):
                    problem = f"has {len(cells)} cells"
                    raise DataError(problem, file=str(file), line=start, expected=f"{len(header)}, as in the header")
                yield Row(dict(zip(header, cells, strict=True)), Origin(str(file), start))
            start = reader.line_num + skipped + 1
    except csv.Error as error:
        raise DataError(f"bad CSV: {error}", file=str(file), line=start) from None


def _delimiter(header: str) -> str:
    """Return the character that separates a header into the most columns; a comma on a tie."""
    return max(",;\t|", key=lambda character: (header.count(character), character == ","))


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(fields, Origin(str(file), number))
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"cannot be read as Parquet: {reason}", file=str(file)) from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_file,
    ".json.gz": _json_file,
    ".csv": _csv,
    ".csv.gz": _csv,
    ".parquet": _parquet,
}
"""Readers by file extension."""
