"""The same stages over models of other sizes, named by their shapes: nothing is downloaded.

Sequences are as long as the paper's setting allows, half prompt and half reply, so this is the most that it takes. The
layers of a model are alike: two small numbers of them are run, and memory grows by the same amount for each more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from meetlm.data.encoding import Encoder
from meetlm.data.example import Origin, PreferenceExample
from meetlm.data.formats import FORMATS
from meetlm.data.prompt_format import PromptFormat
from meetlm.diagnostics.gpus import gathered_bytes
from meetlm.diagnostics.memory import States
from meetlm.objectives.base import OBJECTIVES
from meetlm.recipes.config import RunConfig
from meetlm.run.plan_memory import GpuMemory, rehearse
from meetlm.training.loop import Collator
from meetlm.training.stage import StageSettings

PAIRS, TOKENS = 64, 512
"""Pairs a step and most tokens of prompt and longer reply in the paper (appendix A)."""
FEW, MORE = 2, 4
"""Layers that are run; GPT-Neo's kinds of layer take turns."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A model by its shape.

    Attributes:
        name: For people.
        layers: How many it has.
        config: Its configuration with so many layers instead.
    """

    name: str
    layers: int
    config: Callable[[int], PreTrainedConfig]


SHAPES = (  # all of them pack; what a configuration does not say is the default of its class: GPT-Neo 1.3B, Llama 7B
    Shape(
        "GPT-Neo 1.3B (the paper's)",
        24,
        lambda layers: GPTNeoConfig(num_layers=layers, attention_types=[[["global", "local"], layers // 2]]),
    ),
    Shape("Llama 7B", 32, lambda layers: LlamaConfig(num_hidden_layers=layers)),
    Shape(
        "Llama 70B",
        80,
        lambda layers: LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=layers,
            num_attention_heads=64,
            num_key_value_heads=8,
        ),
    ),
)


def shape_memory(shape: Shape, config: RunConfig, stage: StageSettings, words: Callable[[str], list[int]]) -> GpuMemory:
    """Return what a stage of ``config`` takes over a model of this shape, in the paper's setting.

    Args:
        shape: Of the model.
        config: Its control, its pairs in a forward pass and its gradient checkpointing are used.
        stage: Of ``config``.
        words: Tokenises plain words, for the control.
    """
    few, more = (_memory(shape, layers, config, stage, words) for layers in (FEW, MORE))

    def grown(at_few: int, at_more: int) -> int:
        return at_few + (at_more - at_few) // (MORE - FEW) * (shape.layers - FEW)

    states = States(
        weights=grown(few.states.weights, more.states.weights),
        gradients=grown(few.states.gradients, more.states.gradients),
        moments=grown(few.states.moments, more.states.moments),
    )
    return GpuMemory(states, grown(few.above, more.above), grown(few.sharded, more.sharded), more.gathered)


def _memory(
    shape: Shape, layers: int, config: RunConfig, stage: StageSettings, words: Callable[[str], list[int]]
) -> GpuMemory:
    """Return the same for a model of so many layers."""
    with torch.device("meta"):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(shape.config(layers))  # type: ignore[no-untyped-call]
    gathered = gathered_bytes(lm)
    rehearsal = rehearse(lm, config, stage, words, "packed", bf16=True)
    encoder = Encoder(cast(PromptFormat, _Lengths()), rehearsal.slots, config.control.placement)
    form = FORMATS[stage.format]
    examples = [PreferenceExample(str(n), "", "", str(n), Origin("", n)) for n in range(micro_pairs(config))]
    is_pairwise = OBJECTIVES[stage.objective.kind].is_pairwise
    collate = Collator("packed", is_pairwise=is_pairwise, share=True)
    batch = collate([(form.item(encoder, example), torch.zeros(2)) for example in examples])
    rehearsal.forward_backward(batch)
    more = rehearsal.forward_backward(batch)  # the paper's steps are of several passes: most of them find gradients
    return GpuMemory(rehearsal.states, more.activations, more.sharded, gathered)


def micro_pairs(config: RunConfig) -> int:
    """Return the pairs in a forward pass where a step has the paper's number of them."""
    return config.batch.model_copy(update={"pairs": PAIRS}).micro


class _Lengths:
    """Stands for a prompt format of which only lengths matter; prompts differ, so that replies of one share it."""

    def prompt_ids(self, prompt: str) -> list[int]:
        return [int(prompt)] * (TOKENS // 2)

    def completion_ids(self, prompt: str, completion: str) -> list[int]:
        return [0] * (TOKENS // 2)
