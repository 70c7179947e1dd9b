"""Reads raw rows, each with its place: JSON lines (also gzipped), JSON lists, CSV, Parquet, the hub.

Knows files and how to say what is wrong with one; knows no format of preference data. Files that lie on this
machine under a name it can tell are read here, so that errors name the line; every other layout, and the hub,
go through the ``datasets`` library and have row numbers instead.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from meetlm.config.errors import DataError, nearest
from meetlm.data.example import Origin
from meetlm.data.settings import DataSettings

T = TypeVar("T")

PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps plain copies of data sets whose own loading scripts no longer run."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object as read, with its place.

    Attributes:
        fields: Name to value as JSON has it: str, int, float, bool, None, list, dict.
        origin: File (or hub name) and 1-based line (JSON list, Parquet, hub: 1-based row).
        prefix: ``info.`` for the object inside the field ``info``, so that messages name ``info.post``.
    """

    fields: Mapping[str, Any]
    origin: Origin
    prefix: str = ""

    def text(self, field: str) -> str:
        """Return a string field; a missing one or another type is a ``DataError``."""
        value = self.value(field, "a string", str)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.error("holds half of a surrogate pair", field=field, expected="valid Unicode") from None
        return value

    def number(self, field: str) -> int:
        """Return an integer field (a bool is none)."""
        return self.value(field, "an integer", int)

    def items(self, field: str) -> list[Any]:
        """Return a list field."""
        return self.value(field, "a list", list)

    def inside(self, field: str) -> Row:
        """Return the object in ``field`` as a row of its own."""
        return self.wrap(field, self.value(field, "an object", dict))

    def wrap(self, field: str, value: Mapping[str, Any]) -> Row:
        """Return ``value``, found under ``field``, as a row of its own."""
        return replace(self, fields=value, prefix=f"{self.prefix}{field}.")

    def value(self, field: str, expected: str, kind: type[T]) -> T:
        """Return a field of one JSON type."""
        if field not in self.fields:
            there = ", ".join(sorted(map(str, self.fields))) or "none"
            raise self.error("is missing", field=field, expected=f"{expected}; fields of this row: {there}")
        value = self.fields[field]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"is {kind_of(value)}", field=field, expected=expected)
        return value

    def error(self, problem: str, *, field: str | None = None, expected: str | None = None) -> DataError:
        """Build (not raise) an error that names this row."""
        name = None if field is None else self.prefix + field
        return DataError(problem, file=self.origin.file, line=self.origin.line, field=name, expected=expected)


def kind_of(value: object) -> str:
    """Name a JSON value's type as a user would: ``a list``, ``null``."""
    names = {str: "a string", bool: "true or false", int: "an integer", float: "a number", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


class SplitRows(NamedTuple):
    """The rows of a split, what the split is called, and the file or hub name they come from."""

    rows: Iterator[Row]
    split: str
    file: str


def find_rows(settings: DataSettings, split: Literal["train", "eval"]) -> SplitRows:
    """Find where the rows of a split are, by the settings alone. Reading starts with the iteration.

    Raises:
        DataError: Nothing is there; the message lists what was looked for.
    """
    explicit = settings.train_file if split == "train" else settings.eval_file
    name = settings.train_split if split == "train" else settings.eval_split
    base = None if settings.path is None else Path(settings.path).expanduser()
    if explicit is not None:
        file = Path(explicit).expanduser()
        file = base / file if base is not None and base.is_dir() else file
        return SplitRows(read_file(file), name, str(file))
    alone = split == "eval" and settings.train_file is not None and not (base is not None and base.is_dir())
    if base is None or base.is_file() or alone:
        if base is None or split == "eval":
            at = settings.path or settings.train_file or settings.eval_file or ""
            remedy = "--data.eval_file FILE, or --data.holdout N to hold out N prompts of the training data"
            raise DataError(
                f"no {'held-out' if split == 'eval' else 'training'} data",
                file=at,
                expected=remedy if split == "eval" else "--data.train_file FILE",
            )
        return SplitRows(read_file(base), name, str(base))
    if base.is_dir():
        return _in_folder(base, settings.subset, name)
    if _is_local(str(settings.path)):
        raise DataError(
            f"no such file or folder (looked for {base.absolute()})",
            file=str(base),
            expected=f"a file ({', '.join(READERS)}), a folder, or a hub name such as Anthropic/hh-rlhf",
        )
    return _through_datasets(str(settings.path), settings.subset, name, note="")


def read_file(file: Path) -> Iterator[Row]:
    """Yield the rows of one file, told by its ending; a file without rows is an error."""
    endings = [ending for ending in READERS if file.name.endswith(ending)]
    if not endings:
        raise DataError("unknown kind of file", file=str(file), expected=f"one of {', '.join(READERS)}")
    if not file.is_file():
        raise DataError(f"no such file (looked for {file.absolute()})", file=str(file))
    return _some(READERS[endings[0]](file), str(file))


def _some(rows: Iterator[Row], file: str) -> Iterator[Row]:
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError("holds no rows", file=file, expected="at least one")


def _in_folder(folder: Path, subset: str | None, split: str) -> SplitRows:
    """Look for ``<split>.<ending>`` in the subset's folder, or in the whole one's, then ask ``datasets``."""
    inner = _subset_folder(folder, subset)
    place = inner or folder
    for ending in READERS:
        file = place / f"{split}{ending}"
        if file.is_file():
            return SplitRows(read_file(file), split, str(file))
    looked = f"{place / split}{{{','.join(READERS)}}}"
    return _through_datasets(str(folder), subset if inner else None, split, note=f" (looked for {looked}, too)")


def _subset_folder(folder: Path, subset: str | None) -> Path | None:
    """Return the subset's folder in ``folder``; ``None`` where all of it is meant, or it is the subset itself.

    A subset that is not there is an error: a misspelt one would silently be every row.
    """
    if subset is None or folder.resolve().name == subset and not (folder / subset).is_dir():
        return None
    if not (folder / subset).is_dir():
        there = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        hint = nearest(subset, there) if there else ", nor any other"
        raise DataError(f"there is no folder {subset!r} in it{hint}", file=str(folder), field="data.subset")
    return folder / subset


def _is_local(path: str) -> bool:
    """Whether a path that leads nowhere was meant as one of this machine rather than as ``owner/name``."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path or path.endswith(tuple(READERS))


def _through_datasets(path: str, subset: str | None, split: str, note: str) -> SplitRows:
    file = f"{path}/{subset} [{split}]" if subset else f"{path} [{split}]"

    def rows() -> Iterator[Row]:
        for number, fields in enumerate(_load(path, subset, split, file, note), start=1):
            yield Row(fields, Origin(file, number))

    return SplitRows(_some(rows(), file), split, file)


def _load(path: str, subset: str | None, split: str, file: str, note: str) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset  # takes two seconds to import, and local files do without

    try:
        try:
            table = load_dataset(path, data_dir=subset, split=split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            table = load_dataset(path, data_dir=subset, split=split, revision=PARQUET_BRANCH)
    except Exception as error:  # the hub client, its transport and each file format have error classes of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"cannot be loaded{note}: {reason}",
            file=file,
            expected="a data set on the hub that this machine can reach, or a local file or folder",
        ) from error
    return iter(table)


def _json_lines(file: Path) -> Iterator[Row]:
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rb") as stream:
        number = 0
        lines = iter(stream)
        while True:
            number += 1
            try:
                raw = next(lines)
            except StopIteration:
                return
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(f"broken gzip data: {error}", file=str(file), line=number) from None
            text = _decode(raw, file, number)
            if text.strip():
                yield _object(_json(text, file, number), file, number)


def _json_list(file: Path) -> Iterator[Row]:
    data = file.read_bytes()
    if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json_lines(file)  # many hub files called .json hold JSON lines
        return
    for number, value in enumerate(_json(_decode(data, file, 1), file, 1), start=1):
        yield _object(value, file, number)


def _json(text: str, file: Path, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        what = f"bad JSON at column {error.colno}: {error.msg}"
        raise DataError(what, file=str(file), line=at, expected="one object a line, or a list of objects") from None


def _object(value: object, file: Path, line: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"is {kind_of(value)}", file=str(file), line=line, expected="an object")
    return Row(value, Origin(str(file), line))


def _decode(raw: bytes, file: Path, line: int) -> str:
    """Decode UTF-8 (a byte order mark is skipped); ``line`` is the line that ``raw`` starts at."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = line + raw[: error.start].count(b"\n")
        what = f"invalid UTF-8: byte 0x{raw[error.start]:02x}"
        raise DataError(what, file=str(file), line=at, expected="UTF-8 text") from None


CONVERSATION = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']\s*:""")


def _csv(file: Path) -> Iterator[Row]:
    """Rows of a CSV with a header; ``line`` is where the record starts, as an editor shows it."""
    csv.field_size_limit(2**31 - 1)  # articles are longer than the 128 KiB allowed by default
    text = _decode(file.read_bytes(), file, 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"bad CSV: {error}", file=str(file), line=start) from None
        if header is None:
            header = cells
        elif cells:
            if len(cells) != len(header):
                what = f"has {len(cells)} cells"
                raise DataError(what, file=str(file), line=start, expected=f"{len(header)}, as in the header")
            yield _cells(Row(dict(zip(header, cells, strict=True)), Origin(str(file), start)))


def _cells(row: Row) -> Row:
    """Turn the cells that hold a conversation, which a CSV can only hold as JSON text, into lists."""
    fields: dict[str, Any] = {}
    for name, cell in row.fields.items():
        try:
            fields[name] = json.loads(cell) if CONVERSATION.match(cell) else cell
        except json.JSONDecodeError as error:
            hint = "a conversation as JSON text (json.dumps, not Python's str)"
            raise row.error(f"bad JSON: {error.msg}", field=name, expected=hint) from None
    return replace(row, fields=fields)


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
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot be read as Parquet: {error}", file=str(file)) from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".parquet": _parquet,
}
