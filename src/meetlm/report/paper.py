"""The paper's own Tables 1 to 5, ready to print, with their errata marked and explained: data in ``paper.yaml``."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from meetlm.report.tables import Cell, Table
from meetlm.report.wording import number

DATA = resources.files("meetlm.report") / "paper.yaml"
MARK = "†"
"""Behind a printed figure that contradicts another one of the paper."""
ABOUT = (
    "The paper's Tables 1 to 5 as printed, in percent, on GPT-Neo 1.3B at temperature 0. "
    f"{MARK} marks figures that contradict others of the paper; see the notes below each table."
)
DATASETS = {"hh": ("hh-rlhf", "Anthropic/HH-RLHF"), "summarize": ("summarize", "OpenAI/Summary")}
"""By our name of a data format: what the data's path contains, and the data's name in the paper."""


def paper_records() -> list[dict[str, Any]]:
    """Return the data of the paper's tables: ``number``, ``caption``, ``columns``, ``rows``, some ``notes``."""
    records: list[dict[str, Any]] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return records


def paper_tables(dataset: str = "") -> dict[int, Table]:
    """Return the paper's tables by their number.

    Args:
        dataset: The name of a dataset in the paper: only the tables about it.
    """
    tables = {
        record["number"]: Table(
            f"Table {record['number']} of the paper: {record['caption']}",
            record["columns"],
            [[Cell(cell if isinstance(cell, str) else number(cell, 2)) for cell in row] for row in record["rows"]],
            record.get("notes", []),
        )
        for record in paper_records()
    }
    return {key: table for key, table in tables.items() if dataset in str(table)}


def paper_dataset(data: dict[str, str | None]) -> str | None:
    """Return the paper's name of the data that were read; ``None`` if the paper has no figures on them.

    Args:
        data: The settings of the data, as an evaluation records them.
    """
    marker, name = DATASETS.get(data.get("source") or "", ("", ""))
    return name if name and marker in str(data.get("path")).lower() else None
