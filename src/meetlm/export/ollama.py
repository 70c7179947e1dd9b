"""Export to Ollama: a GGUF model with one level or mix in it, and a Modelfile.

llama.cpp's server reads the model for the parity check. The Modelfile itself is not verified: Ollama renders prompts
with a template in Go's language, which is written here from the run's chat template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from meetlm.config.errors import ConfigError
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.chat_template import MARK, ChatTemplate
from meetlm.data.example import Turn, Weights
from meetlm.data.prompt_format import PromptFormat
from meetlm.export.base import EXPORTERS, Export
from meetlm.export.converter import check_converter
from meetlm.export.gguf import GgufExporter, baked_failure_reason, read_baked, write_baked
from meetlm.export.parity import ParityCase, ToolOutput

MODEL = "model.gguf"


@EXPORTERS.register("ollama")
class OllamaExporter(GgufExporter):
    """Writes the GGUF model and the Modelfile."""

    options = ("converter", "outtype")
    is_single = True

    def failure_reason(self, export: Export) -> str | None:
        """Return why the level cannot be a part of a GGUF model, or why there is no template for it."""
        check_converter(export.settings.converter)
        if any(export.policy.control.slots):
            return "Ollama's template has no control slot: use --to gguf, or a LoRA"
        return baked_failure_reason(export)

    def write(self, export: Export, *, reporter: Reporter = SILENT) -> None:
        """Write model and Modelfile."""
        write_baked(export, dict.fromkeys(export.levels, MODEL))
        write_atomic(export.folder / "Modelfile", modelfile(export.format, is_chat=export.is_chat))
        reporter.warning("the Modelfile is not verified: llama.cpp reads the model for the check, not Ollama")

    def checked_levels(self, export: Export) -> dict[str, Weights]:
        """Return the level that the model has."""
        return export.levels

    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Start llama.cpp's server on the model, and request the log-probs."""
        return read_baked(export, cases, dict.fromkeys(export.levels, MODEL))

    def usage(self, export: Export) -> str:
        """Return the commands that create and run the model."""
        return f"ollama create NAME --file {export.folder / 'Modelfile'}\nollama run NAME"


def modelfile(prompt_format: PromptFormat, *, is_chat: bool) -> str:
    """Return the Modelfile of a model.

    Args:
        prompt_format: Format of the run's prompts.
        is_chat: Whether they are conversations; plain text passes through the template unchanged.

    Raises:
        ConfigError: The chat template cannot be written in Ollama's language.
    """
    template = go_template(prompt_format) if is_chat else "{{ .Prompt }}"
    if '"""' in template:
        raise ConfigError('the chat template writes """, which a Modelfile cannot have: use --to gguf')
    stops = [str(prompt_format.tokenizer.eos_token), *prompt_format.spec.stop]
    lines = [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(["# Not verified with Ollama.", f"FROM ./{MODEL}", f'TEMPLATE """{template}"""', *lines, ""])


def go_template(prompt_format: PromptFormat) -> str:
    """Return the chat template in the language of Ollama's templates, for messages of system, user and assistant.

    Raises:
        ConfigError: The text that the template writes around a message depends on the messages before it.
    """
    template = ChatTemplate(prompt_format.exported_tokenizer(), None)

    def parts(*roles: str) -> list[str]:
        return template.render([Turn(role, MARK) for role in roles], open_reply=True).split(MARK)

    first, ask = parts("user")
    opening, ask_later, between, ask_last = parts("user", "assistant", "user")
    if opening != first or {ask_later, ask_last} != {ask}:
        raise ConfigError("the chat template writes other text around later messages: use --to gguf")
    try:
        system, after_system, _ = parts("system", "user")
    except ConfigError:  # the template refuses system messages
        system, after_system = "", first
    bos = prompt_format.tokenizer.bos_token
    ids = prompt_format.tokenizer("x")["input_ids"]
    if bos and ids[0] == prompt_format.tokenizer.bos_token_id:  # Ollama adds it
        first, system = first.removeprefix(bos), system.removeprefix(bos)
    return (
        "{{- range $i, $message := .Messages }}"
        f'{{{{- if eq .Role "system" }}}}{_text(system)}{{{{ .Content }}}}{_text(after_system)}'
        f'{{{{- else if eq .Role "user" }}}}{{{{- if eq $i 0 }}}}{_text(first)}{{{{- end }}}}'
        f"{{{{ .Content }}}}{_text(ask)}"
        f'{{{{- else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_text(between)}{{{{- end }}}}'
        "{{- end }}"
    )


def _text(text: str) -> str:
    """Return an action of Go's template language that writes ``text``, white space included."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
