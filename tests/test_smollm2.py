"""The real SmolLM2-135M: packing, PEFT folders, two levels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meetlm.controls.build import build_control, parse_control
from meetlm.data.batch import collate
from meetlm.data.example import Prompt, Turn, as_reply
from meetlm.data.formats import FORMATS
from meetlm.data.levels import PAIR_LEVELS
from meetlm.data.prompt_format import PromptFormat, pin_format
from meetlm.export.peft import export_levels
from meetlm.generation.decoding import Branch
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.policy.attention import VARLEN
from meetlm.policy.loading import ModelSettings, embedded_lm, load_lm
from meetlm.policy.policy import Policy
from tiny import encoder_of, first_logits, pairs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT's
]
HALF = {"bad": (1.0, 0.0), "good": (0.0, 1.0)}


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedded_lm()


@pytest.fixture
def loaded(folder: Path) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
    yield load_lm(ModelSettings(name="smollm2", device="cpu"))


def moved(lm: PreTrainedModel, prompt_format: PromptFormat, kind: str) -> Policy:
    """A policy whose levels differ by a random step."""
    settings = parse_control({"kind": kind, **({"length": 8} if kind == "soft-prompt" else {})})
    control = build_control(settings, PAIR_LEVELS, lm, prompt_format.tokenize, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in control.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return Policy(lm, control, longest=600)


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_packed_is_padded_is_alone(kind: str, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    prompt_format = pin_format(loaded[1])
    policy = moved(loaded[0], prompt_format, kind)
    assert (policy.layout, policy.padding_reason) == ("packed", None)
    assert policy.lm.config._attn_implementation == VARLEN
    encoder = encoder_of(policy, prompt_format)
    batch = [sequence for example in pairs(4) for sequence in FORMATS["conditional"].item(encoder, example)]
    with torch.no_grad():
        sums = [
            policy(collate(batch, layout)["blocks"], len(batch)).sums().double()  # type: ignore[arg-type]
            for layout in ("packed", "padded")
        ]
        alone = torch.cat([policy(collate([encoded], "padded")["blocks"], 1).sums().double() for encoded in batch])
    tokens = torch.tensor([encoded.num_trained for encoded in batch])
    for together in sums:
        assert float(((together - alone) / tokens).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_peft_and_levels(
    kind: str, folder: Path, loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    prompt_format = pin_format(loaded[1])
    policy = moved(loaded[0], prompt_format, kind)
    encoder = encoder_of(policy, prompt_format)
    export_levels(policy.control, tmp_path, folder)
    session, text = Session(policy, prompt_format), Prompt("The best way to cook rice is")
    branches = [Branch(tuple(encoder.prompt(text, HALF[level])), HALF[level]) for level in HALF]
    logits = first_logits(policy, branches)
    assert float((logits[0] - logits[1]).abs().max()) > 0.1
    ids = torch.tensor([prompt_format.prompt_ids(text)])
    for row, level in enumerate(HALF):
        base, _ = load_lm(ModelSettings(name="smollm2", device="cpu"))
        adapted = peft.PeftModel.from_pretrained(base, tmp_path / level).eval()
        with torch.no_grad():
            theirs = adapted(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1]
        assert float((theirs - logits[row]).abs().max() / theirs.abs().max()) < 1e-4

    requests = [Request((branch,), Sampling(max_new_tokens=12)) for branch in branches]
    together = session.complete(requests)
    alone = [session.complete([request])[0] for request in requests]
    assert [completion.text for completion in together] == [completion.text for completion in alone]
    assert together[0].text != together[1].text
    assert all(completion.text for completion in together)


def test_chat_template(loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    tokenizer = loaded[1]
    hi = Prompt((Turn("user", "Hi"),))
    with_system, left = pin_format(tokenizer), pin_format(tokenizer, system="none")
    plain = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(with_system.prompt_ids(hi)) == plain
    assert with_system.spec.preamble and with_system.spec.preamble.startswith("<|im_start|>system\n")
    assert tokenizer.decode(left.prompt_ids(hi)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(with_system.completion_ids(hi, as_reply("Hello."))) == "Hello.<|im_end|>"
