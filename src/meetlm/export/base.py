"""The interface of an exporter, and the registry of formats.

An exporter writes levels or mixes of a run for another tool, and reads the result back with that tool, so that
``parity`` can compare it with the run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meetlm.config.registry import Registry
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt, Weights
from meetlm.data.prompt_format import PromptFormat
from meetlm.export.parity import ParityCase, ToolOutput
from meetlm.export.settings import ExportSettings
from meetlm.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class Export:
    """What to export, and where to.

    Attributes:
        policy: Language model and control, on the CPU, in f32.
        format: The run's pinned prompt format.
        is_chat: Whether the run's prompts are conversations.
        levels: Weights [K] of each level or mix to export, by its text as ``--level`` takes it.
        model: Folder of the run's language model, a plain transformers checkpoint.
        base: Hub name or folder of that model for users of the export.
        prompts: Held-out prompts of the parity check; also available with ``--no-verify``.
        last_tokens: Ids of the last tokens of all held-out prompts.
        folder: Folder of the export, empty.
        settings: Options of the format.
    """

    policy: Policy
    format: PromptFormat
    is_chat: bool
    levels: dict[str, Weights]
    model: Path
    base: str
    prompts: tuple[Prompt, ...]
    last_tokens: frozenset[int]
    folder: Path
    settings: ExportSettings


class Exporter(ABC):
    """Writes one format.

    Attributes:
        tool: Name of the tool that reads the format, for messages.
        library: Name on the hub of the library that reads the format.
        options: Fields of :class:`ExportSettings` that the exporter uses.
        names_base: Whether the export names its base model and does not hold it.
        is_single: Whether an export holds one level; otherwise it holds any number, by default all levels.
    """

    tool: str
    library: str
    options: tuple[str, ...] = ()
    is_single: bool = False
    names_base: bool = False

    def failure_reason(self, export: Export) -> str | None:
        """Return why the format cannot express the levels of ``export``; ``None`` if it can."""
        del export
        return None

    @abstractmethod
    def write(self, export: Export, *, reporter: Reporter = SILENT) -> None:
        """Write the files into ``export.folder``; report what is approximated."""

    def checked_levels(self, export: Export) -> dict[str, Weights]:
        """Return weights [K] of the levels and mixes that the parity check compares, by their texts."""
        return export.levels

    @abstractmethod
    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Load the files with the tool, as a user does, and yield what the tool computes for each case, in order."""

    def tool_name(self, settings: ExportSettings) -> str:
        """Return the name of the tool that the parity check runs."""
        del settings
        return self.tool

    @abstractmethod
    def tolerance(self, settings: ExportSettings) -> float:
        """Return the largest difference of log-probs, in nats, that the parity check accepts."""

    @abstractmethod
    def usage(self, export: Export) -> str:
        """Return the commands or the code that use the export, for the terminal and the model card."""


EXPORTERS: Registry[type[Exporter]] = Registry("export format")
