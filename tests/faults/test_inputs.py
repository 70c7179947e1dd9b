"""Property tests of the readers: whatever a file contains, it is read, or refused by an error of meetlm.

MEETLM_INPUTS sets the number of inputs per reader.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from meetlm.config.errors import MeetError
from meetlm.config.files import MANIFEST, manifest_failure_reason
from meetlm.config.journal import Journal
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import FormatSpec
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES, read_examples
from meetlm.evaluation.completions import read_completions
from meetlm.evaluation.judge_prompts import read_verdict
from meetlm.recipes.config import RunConfig, load_config
from meetlm.run.folder import MEET, Meet, read_meet

pytestmark = pytest.mark.faults
INPUTS = int(os.environ.get("MEETLM_INPUTS", "1000"))
TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant:"
TEXT = st.text(max_size=20) | st.sampled_from(
    [f"{TRANSCRIPT} Yes.", TRANSCRIPT, "[[A]]", "user", "assistant", "train", "nan", "1e999", "\u2028", "<|endoftext|>"]
)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
RIGHT: dict[str, list[dict[str, Any]]] = {
    "hh": [{"chosen": f"{TRANSCRIPT} Yes.", "rejected": f"{TRANSCRIPT} No."}],
    "summarize": [
        {
            "info": {"id": "1", "subreddit": "a", "title": "b", "post": "Rice"},
            "summaries": [{"text": "a"}, {"text": "b"}],
            "choice": 1,
            "split": "train",
        }
    ],
    "pairs": [
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "No"}]},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "No"}]},
    ],
    "feedback": [
        {"prompt": "Hi", "completion": "Yes", "score": 0.5},
        {"prompt": "Hi", "completion": "Yes", "label": True},
        {"prompt": "Hi", "completion": TURNS[1:], "attributes": {"tone": "kind", "length": 2}},
    ],
}
"""Rows that can be read, by format."""
FIELDS = st.sampled_from(
    [*{name for rows in RIGHT.values() for row in rows for name in row}, "role", "content", "from", "value", "text"]
)
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def rows_like(rows: list[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return rows of which a few fields are changed, added or removed."""
    changes = st.just({}) | st.dictionaries(FIELDS, VALUE, max_size=2)
    removed = st.just("") | FIELDS
    return st.builds(
        lambda row, change, gone: {name: value for name, value in {**row, **change}.items() if name != gone},
        st.sampled_from(rows),
        changes,
        removed,
    )


def many(strategy: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that calls a test with that many inputs, without those of earlier runs."""
    phases = (Phase.generate, Phase.shrink)
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        limits = settings(
            max_examples=INPUTS,
            deadline=None,
            database=None,
            phases=phases,
            suppress_health_check=checks,
            derandomize=True,
        )
        return limits(given(strategy)(test))

    return decorate


def attempt(read: Callable[[], Any]) -> Any:
    """Return what a reader returns, ``None`` where it refuses its input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return read()
        except MeetError as error:
            assert str(error).strip(), "an error without a message"
            return None


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_rows_are_kept_or_left_out(source: str, tmp_path: Path, record: Callable[..., None]) -> None:
    """Rows kept and rows of another split are together all rows of the file."""
    file = tmp_path / "rows.jsonl"
    outcomes = {"read": 0, "refused": 0}

    @many(st.lists(rows_like(RIGHT[source]), min_size=1, max_size=3))
    def check(rows: list[dict[str, Any]]) -> None:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = attempt(lambda: read_examples(DataSettings(source=source, train_file=str(file)), "train"))
        outcomes["refused" if result is None else "read"] += 1
        assert result is None or len(result.rows) + len(result.other_split_rows) == len(rows)

    check()
    record(f"rows of {source}: {outcomes['read']} files read, {outcomes['refused']} refused")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".jsonl.gz", ".parquet"])
def test_files_of_any_bytes(suffix: str, tmp_path: Path, record: Callable[..., None]) -> None:
    file = tmp_path / f"rows{suffix}"
    lines = st.lists(rows_like(RIGHT["pairs"]), max_size=3).map(
        lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()
    )
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RIGHT["pairs"][:1]), stream)
    right = stream.getvalue()
    cut = st.tuples(st.integers(0, len(right)), st.binary(max_size=4)).map(
        lambda change: right[: change[0]] + change[1] + right[change[0] + len(change[1]) :]
    )
    table = st.lists(st.lists(TEXT, max_size=3), max_size=4).map(
        lambda rows: "\n".join(["prompt,chosen,rejected", *(",".join(row) for row in rows)]).encode()
    )
    bytes_of = st.binary(max_size=60) | lines | table | cut | st.tuples(lines, st.binary(max_size=9)).map(b"".join)
    write = gzip.compress if suffix == ".jsonl.gz" else bytes
    outcomes = {"read": 0, "refused": 0}

    @many(bytes_of)
    def check(contents: bytes) -> None:
        file.write_bytes(write(contents))
        result = attempt(lambda: read_examples(DataSettings(source="pairs", train_file=str(file)), "train"))
        outcomes["refused" if result is None else "read"] += 1

    check()
    record(f"files *{suffix}: {outcomes['read']} read, {outcomes['refused']} refused")


def test_configurations(tmp_path: Path, record: Callable[..., None]) -> None:
    file = tmp_path / "config.yaml"
    right = load_config("pairs-meet-lora", None, {"data.path": "pairs.jsonl"}).model_dump(mode="json")
    keys = st.sampled_from([*RunConfig.model_fields, "kind", "lr", "name", "train", "objective"])
    values = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))
    changes = st.just({}) | st.dictionaries(keys, values, max_size=2)
    files = changes.map(lambda change: yaml.safe_dump({**right, **change}).encode())
    outcomes = {"read": 0, "refused": 0}

    @many(files | st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode()))
    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        result = attempt(lambda: load_config(None, file))
        outcomes["refused" if result is None else "read"] += 1

    check()
    record(f"configurations: {outcomes['read']} read, {outcomes['refused']} refused")


def test_completions(tmp_path: Path, record: Callable[..., None]) -> None:
    file = tmp_path / "completions.jsonl"
    fields = st.sampled_from(["prompt", "completion", "level", "sampling", "seed", "run", "num_tokens", "finish"])
    right = {"prompt": "Hi", "completion": "Yes", "level": "good", "seed": 0, "run": "a"}
    rows = st.lists(
        st.dictionaries(fields, VALUE, max_size=3).map(lambda row: {**right, **row}), min_size=1, max_size=3
    )
    outcomes = {"read": 0, "refused": 0}

    @many(rows)
    def check(rows: list[dict[str, Any]]) -> None:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = attempt(lambda: read_completions("a", [[file]]))
        outcomes["refused" if result is None else "read"] += 1

    check()
    record(f"completions: {outcomes['read']} read, {outcomes['refused']} refused")


def test_answers_of_a_judge(record: Callable[..., None]) -> None:
    """Two different verdicts are no verdict, whatever stands between them."""
    outcomes = {"verdicts": 0, "none": 0}
    marks = st.sampled_from(
        ["[[A]]", "[[B]]", "[[C]]", "**[[A]]**", "Preferred: B.", "Answer: A", "More helpful:", "A", "B"]
    )

    @many(st.lists(st.text(max_size=12) | marks, max_size=6).map(" ".join))
    def check(answer: str) -> None:
        verdict = read_verdict(answer)
        outcomes["none" if verdict is None else "verdicts"] += 1
        assert not ("[[A]]" in answer and "[[B]]" in answer and verdict is not None)

    check()
    record(f"answers of a judge: {outcomes['verdicts']} verdicts, {outcomes['none']} without")


def test_journals(tmp_path: Path, record: Callable[..., None]) -> None:
    """Entries and damaged lines are together all lines; an entry is appended whatever stands before it."""
    file = tmp_path / "journal.jsonl"
    count = [0]
    line = st.binary(max_size=20) | VALUE.map(lambda row: json.dumps(row).encode())

    @many(st.lists(line, max_size=4).map(b"\n".join))
    def check(contents: bytes) -> None:
        file.write_bytes(contents)
        count[0] += 1
        lines = contents.decode("utf-8", "replace").removesuffix("\n").split("\n") if contents else []
        with Journal(file) as journal:
            assert len(journal.entries) + len(journal.damaged) == len(lines)
            journal.append({"last": 1})
        assert Journal(file).entries[-1] == {"last": 1}

    check()
    record(f"journals: {count[0]} read")


def test_records_of_runs_and_manifests(tmp_path: Path, record: Callable[..., None]) -> None:
    outcomes = {"read": 0, "refused": 0}
    right = Meet(
        run="a",
        kind="lora",
        levels=LevelSpace.of_names("bad", "good"),
        default_level="good",
        control={"kind": "lora"},
        lm_sha256="",
        format=FormatSpec(None, "auto", ()),
        conversational=False,
        source="pairs",
    ).to_dict()
    change = st.just({}) | st.dictionaries(st.sampled_from([*right]), VALUE, max_size=2)
    contents = change.map(lambda changes: {**right, **changes}) | VALUE
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()

    @many(contents.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
    def check(contents: bytes) -> None:
        (tmp_path / MEET).write_bytes(contents)
        (tmp_path / MANIFEST).write_bytes(contents)
        assert manifest_failure_reason(tmp_path) is not None
        result = attempt(lambda: read_meet(tmp_path))
        outcomes["refused" if result is None else "read"] += 1

    check()
    record(f"records of runs: {outcomes['read']} read, {outcomes['refused']} refused; as many manifests refused")
