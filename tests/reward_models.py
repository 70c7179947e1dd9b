"""Random reward models of several architectures, with real tokenizers, for tests."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertTokenizer,
    DebertaV2Config,
    DebertaV2Tokenizer,
    PreTrainedTokenizerBase,
)

from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import RewardSettings
from tiny import _WORDS, CHATML, config_of, tiny_tokenizer

TOLERANCE = 1e-4
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "initializer_range": 0.3,
    "num_labels": 1,
}


@cache
def _pieces() -> list[tuple[str, float]]:
    tokenizer = Tokenizer(Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator([_WORDS] * 4, UnigramTrainer(vocab_size=120, show_progress=False))
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, 0.0) for piece in SPECIAL] + [(piece, score) for piece, score in vocabulary if piece not in SPECIAL]


def deberta() -> tuple[PreTrainedTokenizerBase, Any]:
    """Return a tokenizer and a configuration as the paper's reward model has them, but small."""
    tokenizer = DebertaV2Tokenizer(vocab=_pieces(), unk_id=1)
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
    shared = {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
    return tokenizer, DebertaV2Config(**SMALL, vocab_size=len(tokenizer), **relative, **shared, type_vocab_size=0)


def bert() -> tuple[PreTrainedTokenizerBase, Any]:
    """Return an encoder with token types and positions of its own."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted({*_WORDS.lower().replace(".", " .").replace("?", " ?").split(), *signs})
    vocabulary = [*SPECIAL, *words, *(f"##{c}" for c in signs), ":", ".", "?", ";"]
    tokenizer = BertTokenizer(vocab={word: n for n, word in enumerate(dict.fromkeys(vocabulary))})
    return tokenizer, BertConfig(**SMALL, vocab_size=len(tokenizer), max_position_embeddings=128)


def llama(*, pad: int | None = None, template: str | None = None) -> tuple[PreTrainedTokenizerBase, Any]:
    """Return a decoder that pools its last token; ``pad`` is what its config names."""
    tokenizer = tiny_tokenizer(template=template)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, config_of("llama", num_labels=1, pad_token_id=pad)


KINDS = {
    "deberta": (deberta, "pair", "auto"),
    "bert": (bert, "pair", "auto"),
    "llama": (llama, "text", "text"),
    "llama with a pad id": (lambda: llama(pad=0), "text", "text"),
    "llama with a template": (lambda: llama(pad=3, template=CHATML), "chat", "auto"),
}


def folder_of(kind: str, place: Path, **changes: Any) -> Path:
    """Save a random reward model of a kind and return its folder."""
    tokenizer, config = KINDS[kind][0]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def load(folder: Path, **settings: Any) -> RewardModel:
    """Return the reward model in a folder."""
    return RewardModel.load(RewardSettings(model=str(folder), device="cpu", **settings))
