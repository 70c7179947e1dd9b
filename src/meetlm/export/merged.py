"""Export as a plain checkpoint of transformers with one level or mix in it, which needs neither PEFT nor meetlm.

A LoRA is added to the weights. A soft prompt becomes the embeddings of added tokens, which the chat template, or the
tokenizer where prompts are plain text, writes where the run has its control slot.

V rows of the model's embedding table, n vectors of the soft prompt, D size of an embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, processors
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from meetlm.config.errors import RunError
from meetlm.config.files import write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.lora import LoRA
from meetlm.controls.virtual import SoftPrompt
from meetlm.data.chat_template import default_template, with_template
from meetlm.data.example import Weights
from meetlm.export.base import EXPORTERS, Export, Exporter
from meetlm.export.low_rank import factors
from meetlm.export.parity import ParityCase, ToolOutput
from meetlm.export.settings import ExportSettings
from meetlm.export.with_transformers import rendered_ids, reply_logits
from meetlm.policy.loading import embedding_rows, end_tokens


@EXPORTERS.register("merged")
class MergedExporter(Exporter):
    """Writes a model and a tokenizer."""

    tool = "transformers"
    library = "transformers"
    is_single = True

    def failure_reason(self, export: Export) -> str | None:
        """Return why the level cannot be a part of a plain checkpoint."""
        control = export.policy.control
        if control.scope == "response":
            return "merged weights act on the prompt too; this control has scope response: train with scope all"
        if control.settings.kind == "text":
            return "a control of kind 'text' has no weights: write the level's text before each prompt"
        return None

    @torch.no_grad()
    def write(self, export: Export, *, reporter: Reporter = SILENT) -> None:
        """Write model and tokenizer."""
        del reporter
        (weights,) = export.levels.values()
        control = export.policy.control
        lm: PreTrainedModel = AutoModelForCausalLM.from_pretrained(export.model, dtype=torch.float32)
        export.format.exported_tokenizer().save_pretrained(export.folder)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(export.folder)
        assert lm.generation_config is not None
        lm.generation_config.eos_token_id = sorted(end_tokens(lm, tokenizer))
        if isinstance(control, LoRA):
            _merge(lm, control, weights)
        elif isinstance(control, SoftPrompt):
            ids = _add_tokens(tokenizer, len(control.slot(weights)))
            prompt = export.format.prompt_ids(export.prompts[0])
            _add_embeddings(lm, ids, control.adapter_state(weights)["prompt_embeddings"], prompt)
            lm.generation_config.suppress_tokens = ids
            tokenizer = _with_slot(tokenizer, ids, export)
        lm.save_pretrained(export.folder)
        tokenizer.save_pretrained(export.folder)
        if isinstance(control, SoftPrompt):
            _add_no_bos(export.folder)

    def read(self, export: Export, cases: Sequence[ParityCase]) -> Iterator[ToolOutput]:
        """Load model and tokenizer with transformers, and generate.

        Log-probs are those of the run's vocabulary: the probability of added tokens is a note.
        """
        lm: Any = AutoModelForCausalLM.from_pretrained(export.folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(export.folder)
        num_tokens = embedding_rows(export.policy.lm)
        for case in cases:
            slot = export.policy.control.slot(case.weights)
            virtual_ids = dict(zip(range(len(tokenizer) - len(slot), len(tokenizer)), slot, strict=True))
            ids = rendered_ids(tokenizer, case.prompt)
            logits = reply_logits(lm, ids, case)
            log_probs = logits[:, :num_tokens].log_softmax(dim=-1).gather(1, case.candidates)
            note = _added_mass(logits, num_tokens)
            yield ToolOutput(tuple(virtual_ids.get(token, token) for token in ids), log_probs, note)

    def tolerance(self, settings: ExportSettings) -> float:
        """Return the tolerance of f32 arithmetic in another order."""
        del settings
        return 1e-3

    def usage(self, export: Export) -> str:
        """Return code that generates with a pipeline."""
        stop = f", stop_sequence={export.format.spec.stop[0]!r}" if export.format.spec.stop else ""
        prompt = '[{"role": "user", "content": "Hello!"}]' if export.is_chat else repr(export.prompts[0].text())
        return (
            "from transformers import pipeline\n\n"
            f'generate = pipeline("text-generation", model={str(export.folder)!r})\n'
            f"generate({prompt}, max_new_tokens=128, return_full_text=False{stop})"
        )


def _merge(lm: PreTrainedModel, control: LoRA, weights: Weights) -> None:
    """Add a level's or mix's LoRA to the weights of ``lm``."""
    for path, a, b in factors(control.adapter_state(weights)):
        layer = lm.get_submodule(path)
        change = control.scale * b @ a
        assert isinstance(layer.weight, Tensor)
        layer.weight += change.T if isinstance(layer, Conv1D) else change


def _add_tokens(tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """Add special tokens for the vectors of a soft prompt and return their ids, the last ones of the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    names = [f"<|control-{index}|>" for index in range(count)]
    assert not set(names) & set(vocabulary), "the tokenizer has tokens of an earlier export"
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    return list(range(len(tokenizer) - count, len(tokenizer)))


def _add_embeddings(lm: PreTrainedModel, ids: Sequence[int], vectors: Tensor, prompt: Sequence[int]) -> None:
    """Make the embedding of ``lm`` return ``vectors`` [n, D] for ``ids``, and give ``lm`` a head of its own.

    Where the vocabulary grows, the new rows of the head are copies of the row of the token that is least likely after
    ``prompt``: the head has no row that never gives a probability.

    Raises:
        RunError: The model's embedding is not a table times a number.
    """
    num_tokens = embedding_rows(lm)
    model: Any = lm
    least_likely = model(torch.tensor([prompt])).logits[0, -1].argmin()
    if ids[-1] >= num_tokens:
        lm.resize_token_embeddings(ids[-1] + 1, mean_resizing=False)
    embedding, head = lm.get_input_embeddings(), lm.get_output_embeddings()  # type: ignore[no-untyped-call]
    lm.config.tie_word_embeddings = lm.config.get_text_config().tie_word_embeddings = False
    head.weight = nn.Parameter(head.weight.detach().clone())
    for parameter in head.parameters():
        parameter[num_tokens:] = parameter[least_likely]
    table, rows = embedding.weight, torch.tensor(ids)
    assert isinstance(table, Tensor)
    table[rows] = 1.0
    table[rows] = vectors / embedding(rows)  # Gemma's embedding multiplies by sqrt(D)
    if not torch.allclose(embedding(rows), vectors, rtol=1e-4, atol=1e-5):
        raise RunError(f"{type(lm).__name__}: its embedding is not a table times a number, so no vectors can be added")


def _with_slot(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], export: Export) -> PreTrainedTokenizerBase:
    """Return the tokenizer, changed so that it writes the added tokens where the run has its control slot.

    The chat template writes them in conversations, before BOS where it writes one; the tokenizer in plain text.
    """
    is_first = export.policy.control.settings.placement == "first"
    names = tokenizer.convert_ids_to_tokens(list(ids))
    template, text = default_template(tokenizer), json.dumps("".join(names))
    if template is not None:
        after = f"{template}{{%- if add_generation_prompt %}}{{{{- {text} }}}}{{%- endif %}}"
        tokenizer = with_template(tokenizer, f"{{{{- {text} }}}}{template}" if is_first else after)
    backend: Any = tokenizer.backend_tokenizer
    bos, bos_id = tokenizer.bos_token, tokenizer.bos_token_id
    opens = [bos] if bos is not None and tokenizer("x")["input_ids"][0] == bos_id else []
    parts = [*names, *opens, "$A"] if is_first else [*opens, "$A", *names]
    special = [*zip(names, ids, strict=True), *((token, bos_id) for token in opens)]
    single = [] if export.is_chat else parts
    backend.post_processor = processors.TemplateProcessing(single=single or ["$A"], special_tokens=special)
    return tokenizer


def _added_mass(logits: Tensor, num_tokens: int) -> str | None:
    """Return how likely the added tokens are, in words; ``None`` if the vocabulary did not grow."""
    if logits.shape[1] == num_tokens:
        return None
    mass = float(logits.softmax(dim=-1)[:, num_tokens:].sum(dim=-1).max())
    return f"added tokens have a probability of up to {mass:.1g}; generation_config.json excludes them"


def _add_no_bos(folder: Path) -> None:
    """State in ``tokenizer_config.json`` that no BOS is to be added, for tools that add one before rendered text."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_atomic(file, json.dumps({**config, "add_bos_token": False}, indent=2, ensure_ascii=False) + "\n")
