"""Writes the reports: of one evaluation, and of the same comparison over temperatures (the paper's Figure 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from meetlm.config.errors import DataError
from meetlm.config.files import write_atomic
from meetlm.evaluation.record import Evaluation
from meetlm.report.examples import payload, shown
from meetlm.report.html import write_html
from meetlm.report.markdown import escaped, examples_of, write_markdown
from meetlm.report.sections import sections_of
from meetlm.report.summary import summarize
from meetlm.report.temperature import sorted_points, temperature_sections, temperature_summary


def write_report(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``.

    Args:
        evaluation: What is reported.
        folder: Where; made if it is not there.

    Returns:
        Both files.

    Raises:
        DataError: A column of the record has not one entry a cell, or names an unknown system.
    """
    check(evaluation)
    title = f"Evaluation against {evaluation.baseline}"
    summary, sections = summarize(evaluation), sections_of(evaluation)
    settings = {"Settings and versions": as_yaml(evaluation.settings)}
    page = write_html(title, summary, sections, payload(evaluation), settings, shown(evaluation))
    text = write_markdown(title, summary, sections, examples_of(evaluation), settings)
    return _write(folder, "report", page, text)


def write_temperature_report(points: Sequence[tuple[float, Evaluation]], folder: Path) -> tuple[Path, Path]:
    """Write ``temperature.html`` and ``temperature.md``: Δ over temperature, as in the paper's Figure 3.

    Each evaluation has its own report besides, which these name, in the folder of :func:`place_of`.

    Args:
        points: A temperature and its evaluation; several evaluations of a temperature have different baselines.
        folder: Where; made if it is not there.

    Returns:
        Both files.

    Raises:
        DataError: As in :func:`write_report`; or there is no point, or one twice.
    """
    for _, evaluation in points:
        check(evaluation)
    title = "Δ over temperature"
    summary, sections = temperature_summary(points), temperature_sections(points)
    settings = {
        f"Temperature {temperature:g}, against {evaluation.baseline}": as_yaml(evaluation.settings)
        for temperature, evaluation in points
    }
    folded, examples = {}, []
    for temperature, evaluation in sorted_points(points):
        own = place_of(temperature, evaluation)
        write_report(evaluation, folder / own)
        heading = f"At temperature {temperature:g}, against {evaluation.baseline}"
        folded[heading] = f"{quote(own.as_posix())}/report.html", shown(evaluation)
        examples += [f"{escaped(heading)}, as in {quote(own.as_posix())}/report.md:", *examples_of(evaluation)]
    page = write_html(title, summary, sections, None, settings, folded=folded)
    return _write(folder, "temperature", page, write_markdown(title, summary, sections, examples, settings))


def place_of(temperature: float, evaluation: Evaluation) -> Path:
    """Return where an evaluation of a sweep stands in its folder, such as ``t0.5/BASELINE``."""
    return Path(f"t{temperature:g}") / evaluation.baseline


def check(evaluation: Evaluation) -> None:
    """Refuse a record whose columns do not fit its cells.

    Raises:
        DataError: Names the column.
    """
    names = [one.name for one in evaluation.systems]
    cells = len(evaluation.cells)
    columns: dict[str, Sequence[object]] = {
        **{f"completions.{name}": texts for name, texts in evaluation.completions.items()},
        **{f"measures.{m.name}.{name}": values for m in evaluation.measures for name, values in m.values.items()},
        **{f"comparisons.{one.system}.{one.evaluator}": one.outcomes for one in evaluation.comparisons},
        **{f"comparisons.{one.system}.{one.evaluator} margins": one.margins for one in evaluation.comparisons},
        **{
            f"comparisons.{one.system}.{one.evaluator} asked": one.asked
            for one in evaluation.comparisons
            if one.asked is not None
        },
    }
    for field, column in columns.items():
        if len(column) != cells:
            raise _wrong(f"has {len(column)} entries", field, f"one for each of the {cells} cells")
    used = [("baseline", evaluation.baseline)]
    used += [(f"comparisons.{one.evaluator}", one.system) for one in evaluation.comparisons]
    for field, name in used:
        if name not in names:
            raise _wrong(f"names {name!r}", field, f"one of the systems: {', '.join(names)}")
    for one in evaluation.comparisons:
        if one.baseline != evaluation.baseline:
            raise _wrong(f"has the baseline {one.baseline!r}", f"comparisons.{one.system}", repr(evaluation.baseline))
    if set(evaluation.completions) != set(names):
        raise _wrong(
            f"is of {', '.join(evaluation.completions)}", "completions", f"a column for each of {', '.join(names)}"
        )
    outside = [place for place, _ in evaluation.cells if not 0 <= place < len(evaluation.prompts)]
    if outside:
        raise _wrong(f"names prompt {outside[0]}", "cells", f"an index into {len(evaluation.prompts)} prompts")


def as_yaml(settings: dict[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    plain = json.loads(json.dumps(settings))  # a value that stands twice is written twice, not as an anchor
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).strip()


def _wrong(problem: str, field: str, expected: str) -> DataError:
    return DataError(problem, file="evaluation.json", field=field, expected=expected)


def _write(folder: Path, name: str, page: str, text: str) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{name}.html", folder / f"{name}.md"
    for file, written in zip(files, (page, text), strict=True):
        write_atomic(file, written)
    return files
