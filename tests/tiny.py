"""Tiny random models of real architectures, a tiny real tokenizer, and helpers that many tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from meetlm.controls.base import Control
from meetlm.controls.build import build_control, parse_control
from meetlm.data.encoding import Encoded, Encoder, Placement
from meetlm.data.example import Example, Origin, Prompt, as_reply
from meetlm.data.fitted_levels import PAIRS
from meetlm.data.formats import FORMATS
from meetlm.data.levels import PAIR_LEVELS, LevelSpace
from meetlm.data.prompt_format import PromptFormat, pin_format
from meetlm.generation.decoding import Branch, decoder_of
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import MetricsWriter
from meetlm.training.loop import StageTrainer
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings, StageSettings

VOCABULARY = 320
"""Rows of the embedding tables: more than the tokenizer has ids, as in many published models."""

ARCHITECTURES = ("llama", "gpt-neo", "gpt2", "gptj", "qwen2", "qwen3", "gemma", "gemma3")
PACKING_ARCHITECTURES = tuple(name for name in ARCHITECTURES if name != "gptj")
"""Architectures whose attention can be replaced. GPT-J's layers do not use transformers' attention interface."""

CONTROLS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 2},
    "soft-prompt": {"kind": "soft-prompt", "length": 3},
    "special-token": {"kind": "special-token"},
    "text": {"kind": "text"},
    "none": {"kind": "none"},
}
LEVELLED_KINDS = tuple(kind for kind in CONTROLS if kind != "none")
"""Kinds of control whose levels differ."""
TRAINED = ("lora", "soft-prompt", "special-token")
"""Kinds of control that have parameters."""

_SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_GROUPED = {**_SHAPE, "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 1024}
_GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 1024, "vocab_size": VOCABULARY}
_STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
_HALF_LOCAL = [[["global", "local"], 1]]


def config_of(architecture: str, **changes: Any) -> Any:
    """Return the configuration of a tiny model."""
    ends = {"eos_token_id": 0, "bos_token_id": 1, "pad_token_id": None, "initializer_range": 0.2}
    makers: dict[str, Callable[..., Any]] = {
        "llama": lambda **k: LlamaConfig(**{**_GROUPED, **k}),
        "qwen2": lambda **k: Qwen2Config(**{**_GROUPED, **k}),
        "qwen3": lambda **k: Qwen3Config(**{**_GROUPED, "head_dim": 8, **k}),
        "gemma": lambda **k: GemmaConfig(**{**_GROUPED, "head_dim": 8, **k}),
        "gemma3": lambda **k: Gemma3TextConfig(
            **{
                **_GROUPED,
                "head_dim": 8,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
                **k,
            }
        ),
        "gpt2": lambda **k: GPT2Config(**{**_GPT2, **_STILL, **k}),
        "opt": lambda **k: OPTConfig(
            **{
                "hidden_size": 24,
                "word_embed_proj_dim": 24,
                "ffn_dim": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "max_position_embeddings": 1024,
                "vocab_size": VOCABULARY,
                "dropout": 0.0,
                **k,
            }
        ),
        "gptj": lambda **k: GPTJConfig(**{**_GPT2, **_STILL, "rotary_dim": 4, "tie_word_embeddings": False, **k}),
        "gpt-neo": lambda **k: GPTNeoConfig(
            **{
                "hidden_size": 24,
                "num_layers": 2,
                "num_heads": 4,
                "attention_types": _HALF_LOCAL,
                "window_size": 8,
                "max_position_embeddings": 1024,
                "vocab_size": VOCABULARY,
                **k,
            }
        ),
    }
    return makers[architecture](**{**ends, **changes})


def tiny_lm(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> PreTrainedModel:
    """Return a random model whose every parameter, biases and norms too, matters to its logits."""
    torch.manual_seed(seed)
    lm = AutoModelForCausalLM.from_config(config_of(architecture, **changes))
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    lm.eval()
    return lm.to(dtype)


CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are of use.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_WORDS = (
    "\n\nHuman: How are you today? What is a good way to cook rice?\n\nAssistant: I am well. A good way is "
    "to boil it in water. A bad way is to burn it. A good conversation is kind; a bad conversation is not."
)


@cache
def _bpe() -> str:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS], trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(*, bos: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 300 ids: 0 closes texts (3 with a template), 1 opens them where ``bos``."""
    backend = Tokenizer.from_str(_bpe())
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>" if template else "<|endoftext|>",
        bos_token="<s>" if bos else None,
        chat_template=template,
    )


@cache
def text_format() -> PromptFormat:
    """Return a format for plain text without BOS."""
    return pin_format(tiny_tokenizer())


def tiny_control(
    lm: PreTrainedModel,
    kind: str,
    *,
    levels: Sequence[str] = PAIR_LEVELS,
    seed: int = 0,
    move: float = 0.0,
    **changes: Any,
) -> Control:
    """Return a control in the model's dtype; ``move`` is the size of a random step from its start."""
    space = levels if isinstance(levels, LevelSpace) else LevelSpace.of_names(*levels)
    settings = parse_control({**CONTROLS[kind], **changes})
    control = build_control(settings, space, lm, text_format().tokenize, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.add_(move * torch.randn(parameter.shape, generator=generator))
    return control.to(next(lm.parameters()).dtype)


def tiny_policy(
    architecture: str,
    kind: str,
    *,
    seed: int = 0,
    move: float = 0.3,
    dtype: torch.dtype = torch.float64,
    lm: PreTrainedModel | None = None,
    layout: str | None = None,
    **changes: Any,
) -> Policy:
    """Return a policy over a tiny model; ``layout`` overrides the one chosen."""
    lm = lm or tiny_lm(architecture, seed=seed, dtype=dtype)
    policy = Policy(lm, tiny_control(lm, kind, seed=seed, move=move, **changes), longest=64)
    if layout:
        policy.layout = layout  # type: ignore[assignment]
    return policy


def encoder_of(policy: Policy, prompt_format: PromptFormat | None = None) -> Encoder:
    """Return the encoder that belongs to the policy's control."""
    return policy.control.encoder(prompt_format or text_format())


def slots_encoder(
    prompt_format: PromptFormat, slots: Sequence[Sequence[int]], placement: Placement = "first", **more: Any
) -> Encoder:
    """Return an encoder of the levels bad and good, or good alone, with these slots."""
    levels = LevelSpace.of_names(*PAIR_LEVELS[-len(slots) :])
    return Encoder(prompt_format, levels, lambda weights: slots[levels.heaviest(weights)[0]], placement, **more)


def sequences(policy: Policy, lengths: Sequence[tuple[int, int]], levels: Sequence[int] | None = None) -> list[Encoded]:
    """Return random sequences of (prompt, completion) tokens, the slot of their level before them."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for index, (prompt, completion) in enumerate(lengths):
        level = levels[index] if levels else index % 2
        ids = torch.randint(4, 300, (prompt + completion,), generator=generator).tolist()
        weights = policy.control.levels.weights([level])
        slot = policy.control.slot(weights)
        rows.append(Encoded.of_one((*slot, *ids), len(slot) + prompt, weights, policy.control.scope))
    return rows


@torch.no_grad()
def first_logits(policy: Policy, branches: Sequence[Branch]) -> Tensor:
    """Return the logits of the first new token of each branch, computed in one batch, [R, V]."""
    return decoder_of(policy).add(dict(enumerate(branches)), dict.fromkeys(range(len(branches)), 1))


LENGTHS = ((5, 4), (11, 7), (3, 1), (9, 12), (20, 6), (2, 3))
"""Of different prompts and completions, some longer than the tiny models' windows."""


def pairs(count: int) -> list[Example]:
    """Return ``count`` HH-like pairs of different lengths, with their level weights."""
    nouns = ("rice", "water", "a conversation", "the way", "today")
    examples = []
    for i in range(count):
        prompt = f"\n\nHuman: What is {nouns[i % 5]}? {'Please. ' * (i % 3)}{i}\n\nAssistant:"
        chosen, rejected = f" It is {'good ' * (1 + i % 4)}{i}.", f" {'bad ' * (1 + (i + 1) % 3)}{i}"
        sides = as_reply(chosen), as_reply(rejected)
        examples.append(Example.of_pair(Prompt(prompt), *sides, prompt, Origin("pairs", i + 1)))
    return PAIRS.apply(examples)


def items_of(policy: Policy, count: int = 8) -> list[tuple[Encoded, ...]]:
    """Return the training items of ``count`` pairs in the format ``conditional``."""
    encoder = encoder_of(policy)
    return [FORMATS["conditional"].item(encoder, example) for example in pairs(count)]


def stage(train: Sequence[str] = ("control",), *, steps: int = 3, lr: float = 1e-2, **more: Any) -> StageSettings:
    """Return a stage of exactly ``steps`` steps."""
    return StageSettings(name="stage", train=tuple(train), lr=lr, epochs=1e-6, min_steps=steps, **more)


def trainer(
    policy: Policy,
    items: Sequence[tuple[Encoded, ...]],
    folder: Path,
    settings: StageSettings,
    *,
    pairs: int = 4,
    micro: int = 4,
    seed: int = 0,
    save_steps: int | None = None,
    **optim: Any,
) -> StageTrainer:
    """Return a trainer that writes ``metrics.jsonl`` into ``folder``."""
    set_trainable(policy, settings)
    folder.mkdir(parents=True, exist_ok=True)
    batch = BatchSettings(pairs=pairs, micro_pairs=micro, save_steps=save_steps)
    metrics = MetricsWriter(folder / "metrics.jsonl")
    return StageTrainer(policy, items, settings, OptimSettings(**optim), batch, folder, seed, [metrics])


def gradients(policy: Policy) -> dict[str, Tensor]:
    """Return a copy of every gradient, and drop them."""
    copies = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return copies


def gap(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """Return the largest difference of two sets of tensors, relative to the largest entry of the left set."""
    assert left.keys() == right.keys()
    largest = max(float(t.abs().max()) for t in left.values())
    return max(float((left[name] - right[name]).abs().max()) for name in left) / largest
