"""Export to llama.cpp: the model as GGUF file and an adapter per level, which a request mixes by scales.

llama.cpp's server adds adapters with any scales per request, negative ones too, as the run mixes levels. Controls
without adapters, such as soft prompts, are part of the model: one GGUF file per level or mix.

The server's prompt cache in host memory (``--cache-ram``) ignores scales: a prompt that was computed under other scales
is reused, which changes replies. The printed command turns it off.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.lora import LoRA
from meetlm.data.example import Weights
from meetlm.data.levels import LevelSpace
from meetlm.export.base import EXPORTERS, Export, Exporter
from meetlm.export.converter import check_converter, convert_lora, convert_model
from meetlm.export.levels_file import Adapter, ServedLevels
from meetlm.export.llama_server import TOOL, LlamaServer
from meetlm.export.merged import MergedExporter
from meetlm.export.parity import ParityCase, ToolOutput
from meetlm.export.peft import write_adapter
from meetlm.export.settings import ExportSettings

TOLERANCES = {"f32": 0.1, "f16": 0.2, "q8_0": 2.0}
"""Accepted differences of log-probs in nats, by the type of the weights: two to three times those of SmolLM2-135M
(LOG.md), whose levels differ by 6."""


@EXPORTERS.register("gguf")
class GgufExporter(Exporter):
    """Writes GGUF files, and ``levels.json`` where the levels are adapters."""

    tool = TOOL
    library = "gguf"
    options: tuple[str, ...] = ("converter", "outtype", "slider")

    def failure_reason(self, export: Export) -> str | None:
        """Return why llama.cpp cannot express the levels."""
        check_converter(export.settings.converter)
        control = export.policy.control
        if export.settings.slider:
            return _slider_failure_reason(export)
        if control.scope == "response":
            return "llama.cpp applies one LoRA of scope response per request, and no mixes: train with scope all"
        if isinstance(control, LoRA):
            return None
        return baked_failure_reason(export)

    def write(self, export: Export, *, reporter: Reporter = SILENT) -> None:
        """Write the model and its adapters, or a model per level."""
        del reporter
        control = export.policy.control
        if not isinstance(control, LoRA):
            write_baked(export, {level: self._file(export, level) for level in export.levels})
            return
        adapters = _adapters(export)
        worst = next(iter(adapters)).worst
        served = ServedLevels(self._file(export, "base" if worst is None else worst), control.levels, tuple(adapters))
        converter = check_converter(export.settings.converter)
        with TemporaryDirectory(dir=export.folder) as temporary:
            checkpoint, folder = Path(temporary) / "model", Path(temporary) / "adapter"
            if worst is None:
                _link_model(export, checkpoint)
            else:
                _write_merged(export, worst, control.levels.worst, checkpoint)
            convert_model(converter, checkpoint, export.folder / served.model, export.settings.outtype)
            for adapter, weights in adapters.items():
                write_adapter(control, weights, folder, export.base)
                convert_lora(converter, folder, checkpoint, export.folder / adapter.file)
        served.write(export.folder)

    def checked_levels(self, export: Export) -> dict[str, Weights]:
        """Return the exported levels, a mix with a negative weight and, without a slider, the model with no adapter."""
        levels = export.policy.control.levels
        if not isinstance(export.policy.control, LoRA):
            return export.levels
        worst, best = _ends(levels)
        mixes = {f"{levels[best]}=1.5,{levels[worst]}=-0.5": _mix(levels, {worst: -0.5, best: 1.5})}
        if export.settings.slider:
            return {levels[worst]: levels.worst, levels[best]: levels.best, **mixes}
        return {**export.levels, **mixes, "no adapter": levels.weights([])}

    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Start the server on the files, as the command of :meth:`usage` does, and request the log-probs."""
        control = export.policy.control
        if not isinstance(control, LoRA):
            yield from read_baked(export, cases, {level: self._file(export, level) for level in export.levels})
            return
        served = ServedLevels.read(export.folder)
        files = [export.folder / adapter.file for adapter in served.adapters]
        server = LlamaServer(export.folder / served.model, files, _num_positions(cases))
        for case in cases:
            weights = {name: weight for name, weight in zip(control.levels, case.weights, strict=True) if weight}
            ids = server.rendered_ids(case.prompt)
            yield ToolOutput(tuple(ids), server.log_probs(ids, case, served.lora(weights)))

    def tolerance(self, settings: ExportSettings) -> float:
        """Return the tolerance of the weights' type; the server's key-value cache is in f16."""
        return TOLERANCES[settings.outtype]

    def usage(self, export: Export) -> str:
        """Return the command that starts the server, and a request."""
        is_chat = export.is_chat
        request: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello!"}]} if is_chat else {"prompt": "…"}
        model, adapters, note = self._file(export, next(iter(export.levels))), "", ""
        if isinstance(export.policy.control, LoRA):
            served = ServedLevels.read(export.folder)
            model, levels = served.model, served.levels
            request["lora"] = served.lora({levels[k]: 1.0 for k, weight in enumerate(levels.best) if weight})
            files = [adapter.file for adapter in served.adapters]
            scaled = (f"{file}:{entry['scale']:g}" for file, entry in zip(files, request["lora"], strict=True))
            adapters = f" --lora-scaled {','.join(scaled)}"
            note = f"\n\nmeetlm.llama_cpp.payload(LEVEL, {str(export.folder)!r}) returns lora for any level or mix."
        path = "/v1/chat/completions" if is_chat else "/completion"
        body = shlex.quote(json.dumps(request))
        return (
            f"cd {shlex.quote(str(export.folder))}\n"
            f"llama-server --jinja --cache-ram 0 --model {model}{adapters}\n\n"
            f"curl http://127.0.0.1:8080{path} -H 'Content-Type: application/json' -d {body}{note}"
        )

    def _file(self, export: Export, level: str) -> str:
        return f"{_safe(level)}-{export.settings.outtype}.gguf"


def baked_failure_reason(export: Export) -> str | None:
    """Return why a GGUF model cannot have the levels in its weights and its chat template."""
    if not export.is_chat and any(export.policy.control.slots):
        return "llama.cpp writes a control slot into conversations only, and the run's prompts are plain text"
    return MergedExporter().failure_reason(export)


def write_baked(export: Export, files: dict[str, str]) -> None:
    """Write a GGUF model per level or mix.

    Args:
        export: The export.
        files: Name of the file by the text of the level.
    """
    converter = check_converter(export.settings.converter)
    for level, file in files.items():
        with TemporaryDirectory(dir=export.folder) as temporary:
            checkpoint = Path(temporary) / "model"
            _write_merged(export, level, export.levels[level], checkpoint)
            convert_model(converter, checkpoint, export.folder / file, export.settings.outtype)


def read_baked(export: Export, cases: Sequence[ParityCase], files: dict[str, str]) -> Iterator[ToolOutput]:
    """Start the server on each model that :func:`write_baked` wrote, and request the log-probs."""
    first = len(export.format.tokenizer)  # of the ids that a soft prompt adds
    for level, of_level in groupby(cases, key=lambda case: case.level):
        server = LlamaServer(export.folder / files[level], [], _num_positions(cases))
        for case in of_level:
            ids, slot = server.rendered_ids(case.prompt), export.policy.control.slot(case.weights)
            virtual_ids = dict(zip(range(first, first + len(slot)), slot, strict=True))
            yield ToolOutput(tuple(virtual_ids.get(token, token) for token in ids), server.log_probs(ids, case, []))


def _num_positions(cases: Sequence[ParityCase]) -> int:
    return max(len(case.ids) + len(case.reply) for case in cases) + 8


def _link_model(export: Export, folder: Path) -> None:
    """Make a checkpoint of the run's model and the tokenizer that renders prompts as in training, without copies."""
    folder.mkdir(parents=True)
    for file in export.model.glob("*.*"):
        (folder / file.name).symlink_to(file.resolve())
    for file in folder.glob("*token*"):
        file.unlink()
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    export.format.exported_tokenizer().save_pretrained(folder)


def _write_merged(export: Export, level: str, weights: Weights, folder: Path) -> None:
    """Write a level or mix as a plain checkpoint."""
    folder.mkdir(parents=True)
    MergedExporter().write(replace(export, levels={level: weights}, folder=folder))


def _adapters(export: Export) -> dict[Adapter, Weights]:
    """Return the adapters in the order of their ids, and the level weights [K] of each."""
    levels = export.policy.control.levels
    if export.settings.slider:
        worst, best = _ends(levels)
        slider = Adapter("slider.gguf", levels[best], levels[worst])
        return {slider: _mix(levels, {worst: -1.0, best: 1.0})}
    return {Adapter(f"{_safe(level)}.gguf", level): levels.weights([k]) for k, level in enumerate(levels)}


def _slider_failure_reason(export: Export) -> str | None:
    control = export.policy.control
    if not isinstance(control, LoRA) or control.scope == "response":
        return "--slider requires a LoRA of scope all"
    if not control.levels.is_scale or len(control.levels) < 2:
        return "--slider requires levels of one attribute with an order, and two levels or more"
    return None


def _ends(levels: LevelSpace) -> tuple[int, int]:
    """Return the indices of the worst and the best level of the first attribute."""
    of_first = next(iter(levels.ranges.values()))
    return of_first[0], of_first[-1]


def _mix(levels: LevelSpace, weights: dict[int, float]) -> Weights:
    """Return weights [K] from those of some levels, by their indices."""
    return tuple(weights.get(k, 0.0) for k in range(len(levels)))


def _safe(name: str) -> str:
    """Return a name without characters that have a meaning in a shell or in ``--lora-scaled``."""
    return re.sub(r"[^\w.=-]", "_", name)
