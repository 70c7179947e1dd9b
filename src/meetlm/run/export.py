"""``meet export``: write levels or mixes of a run for another tool, and check the result with that tool."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.files import refuse_foreign_files, write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.versions import versions
from meetlm.data.example import Prompt, Weights
from meetlm.data.settings import DataSettings
from meetlm.export.base import Export
from meetlm.export.exporters import EXPORTERS
from meetlm.export.parity import REPLY_TOKENS, Parity, compare, record_cases
from meetlm.export.settings import ExportSettings
from meetlm.policy.loading import num_positions
from meetlm.run.aligned import Aligned, load
from meetlm.run.completions import held_out_rows
from meetlm.run.folder import MODEL, Meet, read_meet, read_model_settings, unchanged_hub_model
from meetlm.run.levels import Level, level_text
from meetlm.run.model_card import upload, write_model_card

EXPORTS = "export"
"""Folder of exports within the folder of a run."""
RECORD = "export.json"
"""File of an export with its contents and the result of the parity check."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """A finished export.

    Attributes:
        folder: The folder.
        files: Its files, relative to the folder.
        levels: Weights by the text of each level.
        parity: The result of the parity check; ``None`` without it.
        usage: How to use the export.
    """

    folder: Path
    files: list[str]
    levels: dict[str, Weights]
    parity: Parity | None
    usage: str


def export_run(
    run: str | Path,
    to: str,
    levels: Sequence[Level] = (),
    *,
    out: str | Path | None = None,
    base: str | None = None,
    settings: ExportSettings | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    data: DataSettings | None = None,
    limit: int = 4,
    push_to_hub: str | None = None,
    is_private: bool = False,
    reporter: Reporter = SILENT,
) -> ExportResult:
    """Export levels or mixes of a finished run, and compare the result with the run.

    Args:
        run: Folder of the run.
        to: Name of the format.
        levels: Levels or mixes, as in :meth:`Aligned.generate`. By default all levels, or the run's default level for
            formats that hold one.
        out: Folder of the export; by default ``RUN/export/FORMAT``, with the level for formats that hold one.
        base: Hub name or folder of the base model that the export names; by default the hub name of the run's base
            model if training has not changed it, else the run's model.
        settings: Options of the format.
        verify: Whether to load the result with the other tool and compare it with the run.
        tolerance: Largest difference of log-probs that is accepted, in nats; by default the format's.
        data: Data whose evaluation split has the prompts of the parity check; by default the run's.
        limit: Number of prompts of the parity check.
        push_to_hub: Repository on the hub that the export is uploaded to; ``None`` = no upload.
        is_private: Whether a repository that is created is private.
        reporter: Shows messages and the result of the parity check.

    Raises:
        RunError: There is no finished run, the format cannot express the levels, or the parity check fails.
        ConfigError: An option is wrong, or ``base`` is the model before training, which has changed it.
        DataError: The prompts cannot be read.
    """
    run, settings = Path(run), settings or ExportSettings()
    exporter = EXPORTERS[to]()
    unused = sorted(set(settings.model_dump(exclude_defaults=True)) - set(exporter.options))
    if unused:
        raise ConfigError(f"--{unused[0].replace('_', '-')} has no effect with --to {to}: leave it out")
    meet = read_meet(run)
    requested: Sequence[Level | None] = levels or ([None] if exporter.is_single else meet.levels)
    resolved = [meet.resolve(level, reporter=reporter) for level in requested]
    texts = [level_text(level) for level in resolved]
    if exporter.is_single and len(texts) > 1:
        raise ConfigError(f"--to {to} exports one level, and there are {len(texts)}: call it once per level")
    folder = Path(out) if out else run / EXPORTS / (f"{to}-{texts[0]}" if exporter.is_single else to)
    base = base or unchanged_hub_model(run, meet) or str((run / MODEL).resolve())
    _check_base(run, meet, base)
    if push_to_hub is not None and exporter.names_base and Path(base).exists():
        raise ConfigError(
            f"--push-to-hub requires --base: the export names its base model, and {base} is a folder of this machine; "
            "upload it to the hub and pass its name"
        )
    aligned = load(run, device="cpu")
    prompts = _prompts(aligned, run, data, reporter)
    export = Export(
        policy=aligned.policy,
        format=aligned.format,
        is_chat=meet.conversational,
        levels={text: aligned.weights(level) for text, level in zip(texts, resolved, strict=True)},
        model=run / MODEL,
        base=base,
        prompts=tuple(prompts[:limit]),
        last_tokens=frozenset(aligned.format.prompt_ids(prompt)[-1] for prompt in prompts),
        folder=folder,
        settings=settings,
    )
    reason = exporter.failure_reason(export)
    if reason:
        raise RunError(f"no export to {to}: {reason}")
    _clear(folder)
    exporter.write(export, reporter=reporter)
    parity, tool = None, exporter.tool_name(settings)
    if verify:
        cases = record_cases(aligned.policy, aligned.format, export.prompts, exporter.checked_levels(export))
        limit_nats = exporter.tolerance(settings) if tolerance is None else tolerance
        parity = compare(cases, exporter.read(export, cases), tool, limit_nats, aligned.format)
    _write_record(export, to, meet.run, parity)
    if parity is None:
        reporter.warning(f"the export was not compared with the run (--no-verify): {folder}")
    else:
        reporter.message(str(parity))
        for note in parity.notes:
            reporter.message(note)
        if not parity.passes:
            problems = parity.problems or [
                f"the largest difference of a log-prob is {parity.largest:.2g} nats; --tolerance accepts more than "
                f"{parity.tolerance:g}"
            ]
            refusal = f"{folder}: {tool} does not compute what the run computes; do not use this export"
            raise RunError("\n  ".join([refusal, *problems]))
    usage = exporter.usage(export)
    write_model_card(run, export, meet, to, parity, push_to_hub)
    if push_to_hub is not None:
        reporter.message(f"uploaded to {upload(folder, push_to_hub, is_private=is_private)}")
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return ExportResult(folder, files, export.levels, parity, usage)


def _check_base(run: Path, meet: Meet, base: str) -> None:
    """Refuse the name of the untrained model for adapters that belong to the trained one.

    Raises:
        ConfigError: ``base`` is the model that the run started from, and training has changed it.
    """
    is_first_model = base == read_model_settings(run).name and not Path(base).exists()
    if is_first_model and unchanged_hub_model(run, meet) is None:
        raise ConfigError(
            f"--base {base}: training has changed this model; upload {run / MODEL} to the hub and pass its name"
        )


def _prompts(aligned: Aligned, run: Path, data: DataSettings | None, reporter: Reporter) -> list[Prompt]:
    """Return the held-out prompts that leave room for a reply."""
    rows = held_out_rows(aligned, run, data, reporter)
    positions = num_positions(aligned.policy.lm)
    slot = max(map(len, aligned.policy.control.slots)) * len(aligned.levels.attributes)
    prompts = [
        row.prompt
        for row in rows
        if positions is None or len(aligned.format.prompt_ids(row.prompt)) + slot + REPLY_TOKENS <= positions
    ]
    if not prompts:
        raise RunError(f"{run}: no held-out prompt leaves room for a reply in {positions} positions: pass --data.path")
    return prompts


def _clear(folder: Path) -> None:
    """Create the folder, or empty it if it holds an earlier export."""
    if (folder / RECORD).is_file():
        shutil.rmtree(folder)
    refuse_foreign_files(folder)
    folder.mkdir(parents=True, exist_ok=True)


def _write_record(export: Export, to: str, run: str, parity: Parity | None) -> None:
    record = {
        "run": run,
        "format": to,
        "levels": {name: list(weights) for name, weights in export.levels.items()},
        "base": export.base,
        "settings": export.settings.model_dump(mode="json"),
        "parity": None if parity is None else {**asdict(parity), "passes": parity.passes},
        "versions": versions("meetlm", "torch", "transformers"),
    }
    write_atomic(export.folder / RECORD, json.dumps(record, indent=2) + "\n")
