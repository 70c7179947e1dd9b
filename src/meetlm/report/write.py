"""Write the reports: of one evaluation, and of the same comparison over temperatures (the paper's Figure 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

import yaml

from meetlm.config.files import write_atomic
from meetlm.evaluation.record import Evaluation
from meetlm.report.conditions import Condition
from meetlm.report.examples import examples_of, page_data
from meetlm.report.page import ExampleGroup, Report, to_html, to_markdown
from meetlm.report.sections import sections_of
from meetlm.report.summary import summarize


def write_report(evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write ``report.html`` and ``report.md``.

    Args:
        evaluation: The record to report.
        folder: Where to write; created if needed.

    Returns:
        Both files.
    """
    conditions = [Condition(evaluation)]
    report = Report(
        title=f"Evaluation{data_name(evaluation.settings)} against {evaluation.baseline}",
        details=details_of(evaluation.settings),
        summary=summarize(conditions),
        sections=sections_of(conditions),
        examples=[ExampleGroup("", "", examples_of(evaluation))],
        settings={"Settings and versions": as_yaml(evaluation.settings)},
        data=page_data(evaluation),
    )
    return write_pages(folder, "report", report)


def write_temperature_report(points: Sequence[tuple[float, Evaluation]], folder: Path) -> tuple[Path, Path]:
    """Write ``temperature.html`` and ``temperature.md``, and the report of each evaluation, to which they link.

    Args:
        points: A temperature and its evaluation; several evaluations at a temperature have different baselines.
        folder: Where to write; created if needed. The report of an evaluation is in its :func:`folder_of`.

    Returns:
        Both files.
    """
    baselines = [evaluation.baseline for _, evaluation in points]
    points = sorted(points, key=lambda point: (baselines.index(point[1].baseline), point[0]))
    conditions = [Condition(evaluation, temperature) for temperature, evaluation in points]
    groups = []
    for condition, (temperature, evaluation) in zip(conditions, points, strict=True):
        subfolder = folder_of(temperature, evaluation)
        write_report(evaluation, folder / subfolder)
        address = quote(subfolder.as_posix()) + "/report.html"
        groups.append(ExampleGroup(condition.heading, address, examples_of(evaluation)))
    settings = conditions[0].evaluation.settings
    report = Report(
        title=f"Δ over temperature{data_name(settings)}",
        details=details_of(settings),
        summary=summarize(conditions),
        sections=sections_of(conditions),
        examples=groups,
        settings={condition.heading: as_yaml(condition.evaluation.settings) for condition in conditions},
    )
    return write_pages(folder, "temperature", report)


def folder_of(temperature: float, evaluation: Evaluation) -> Path:
    """Return the folder of an evaluation in a sweep, relative to the sweep's, such as ``t0.5/BASELINE``."""
    return Path(f"t{temperature:g}") / evaluation.baseline


def data_name(settings: dict[str, Any]) -> str:
    """Return the name of the held-out data as it continues a title, such as `` on hh-rlhf (helpful-base)``."""
    data = settings.get("data") or {}
    source = data.get("eval_file") or data.get("path") or data.get("train_file")
    subset = f" ({data['subset']})" if data.get("subset") else ""
    return f" on {PurePath(source).name}{subset}" if source else ""


def details_of(settings: dict[str, Any]) -> str:
    """Return the date and the version of an evaluation, for the line below the title."""
    parts = []
    if "date" in settings:
        day = date.fromisoformat(settings["date"])
        parts.append(f"{day.day} {day:%B %Y}")
    if version := settings.get("versions", {}).get("meetlm"):
        parts.append(f"meetlm {version}")
    return ", ".join(parts)


def as_yaml(settings: dict[str, Any]) -> str:
    """Return settings as YAML, in their order."""
    json_values = json.loads(json.dumps(settings))  # repeated values are written out, not as YAML anchors
    return yaml.safe_dump(json_values, sort_keys=False, allow_unicode=True, width=100).strip()


def write_pages(folder: Path, name: str, report: Report) -> tuple[Path, Path]:
    """Write a report as ``NAME.html`` and ``NAME.md`` in a folder, which is created if needed; return both files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / f"{name}.html", folder / f"{name}.md"
    write_atomic(files[0], to_html(report))
    write_atomic(files[1], to_markdown(report))
    return files
