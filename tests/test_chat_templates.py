"""Chat templates in the manner of popular models: no turn is dropped, and training, generation and export agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import meetlm
from meetlm.config.errors import ConfigError, DataError
from meetlm.data.encoding import example_lengths
from meetlm.data.example import Example, Origin, Prompt, Turn, UnfilteredRows, as_reply
from meetlm.data.filters import filter_eval, filter_train
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.evaluation.reward_input import RewardInput
from meetlm.run.execute import execute
from run_folders import config_for
from tiny import CHATML, tiny_tokenizer

EOS = 3
START = "<|im_start|>"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
LAST = "m['role'] == 'assistant' and loop.last"
THINK = "<think>\n\n</think>\n\n"
QWEN3 = (  # an empty block of reasoning before the last reply; reasoning in the reply or in its own field
    "{% for m in messages %}{% if " + LAST + " %}{% set r = m.reasoning_content or '' %}{% set c = m['content'] %}"
    "{% if '</think>' in c %}{% set r = c.split('</think>')[0].split('<think>')[-1] %}"
    "{% set c = c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n<think>\n' + r.strip('\n') + '\n</think>\n\n' + c + '<|im_end|>\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant<|channel|>final<|message|>' + m['content'] + '<|im_end|>' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
MISTRAL = (  # no generation prompt, a space before the reply, other roles refused
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PLAIN = (  # no generation prompt at all
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
R1 = (  # its generation prompt opens reasoning that its replies do not have
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set c = '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim + '<|im_end|>' %}"
    "{% if loop.first %}{% set c = '<s>' + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PARTS = CHATML.replace("message['content']", "message['content'][0]['text']")
IGNORING = "{% for m in messages %}{% if m['role'] in ('user', 'assistant') %}" + TURN + "{% endif %}{% endfor %}" + ASK
FAILING = "{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}"
HI, HELLO = Prompt((Turn("user", "Hi"),)), as_reply("Hello there.")

OPENINGS: dict[str, tuple[str, str, str]] = {  # the end of the prompt, and the reply
    "Qwen3": (QWEN3, f"{START}assistant\n{THINK}", "Hello there.<|im_end|>"),
    "gpt-oss": (GPT_OSS, f"{START}assistant<|channel|>final<|message|>", "Hello there.<|im_end|>"),
    "Mistral": (MISTRAL, "[INST] Hi [/INST]", " Hello there.<|im_end|>"),
    "plain": (PLAIN, "user: Hi\nassistant:", " Hello there.\n<|im_end|>"),
    "R1": (R1, "<|User|>Hi<|Assistant|>", "Hello there.<|im_end|>"),
    "Llama 3": (LLAMA3, f"{START}assistant\n\n", "Hello there.<|im_end|>"),
    "Phi": (PHI, "<|user|>\nHi<|end|>\n<|assistant|>\n", "Hello there.<|end|>\n<|im_end|>"),
    "parts": (PARTS, f"{START}assistant\n", "Hello there.<|im_end|>"),
}


def format_of(template: str, **settings: Any) -> PromptFormat:
    return pin_format(tiny_tokenizer(template=template), **settings)


def text_of(prompt_format: PromptFormat, ids: list[int]) -> str:
    return str(prompt_format.tokenizer.decode(ids))


def pair(prompt: Prompt, chosen: str, rejected: str, line: int = 7) -> Example:
    return Example.of_pair(prompt, as_reply(chosen), as_reply(rejected), prompt.group, Origin("train.jsonl", line))


def tokens_at_line_7(prompt_format: PromptFormat, example: Example) -> None:
    filter_train(UnfilteredRows([example], []), lambda each: example_lengths(prompt_format, each), 999)


@pytest.mark.parametrize("name", OPENINGS)
def test_text_of_the_template_before_a_reply_belongs_to_the_prompt(name: str) -> None:
    template, end, said = OPENINGS[name]
    prompt_format = format_of(template)
    prompt, reply = prompt_format.prompt_ids(HI), prompt_format.completion_ids(HI, HELLO)
    assert text_of(prompt_format, prompt).endswith(end)
    assert text_of(prompt_format, reply) == said
    assert reply[-1] == EOS and reply.count(EOS) == 1


@pytest.mark.parametrize("name", OPENINGS)
def test_the_exported_template_opens_a_reply_as_training_did(name: str) -> None:
    prompt_format = format_of(OPENINGS[name][0])
    exported = prompt_format.exported_tokenizer()
    content: Any = "Hi" if name != "parts" else [{"type": "text", "text": "Hi"}]
    messages = [{"role": "user", "content": content}]
    trained = text_of(prompt_format, prompt_format.prompt_ids(HI))
    for variables in ({}, {"enable_thinking": False}):
        opened = exported.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
        assert opened.rstrip(" ") == trained
    again = PromptFormat(exported, FormatSpec.from_dict(json.loads(json.dumps(prompt_format.spec.to_dict()))))
    assert again.prompt_ids(HI) == prompt_format.prompt_ids(HI)
    assert again.completion_ids(HI, HELLO) == prompt_format.completion_ids(HI, HELLO)


def test_a_run_is_saved_with_that_template(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "llama", "none", chat=True, template=QWEN3), tmp_path / "run")
    aligned = meetlm.load(tmp_path / "run")
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    opened = saved.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert opened.endswith(THINK)
    assert text_of(aligned.format, aligned.format.prompt_ids(HI)) == opened


def test_runs_of_older_versions_keep_their_openings_in_the_reply() -> None:
    spec = format_of(QWEN3).spec.to_dict()
    del spec["opening_in_prompt"]
    old = PromptFormat(tiny_tokenizer(template=QWEN3), FormatSpec.from_dict(spec))
    assert text_of(old, old.prompt_ids(HI)).endswith(f"{START}assistant\n")
    assert text_of(old, old.completion_ids(HI, HELLO)) == f"{THINK}Hello there.<|im_end|>"
    assert old.exported_tokenizer() is old.tokenizer


@pytest.mark.parametrize(
    "reply",
    [as_reply("<think>\nHm.\n</think>\n\nHello."), Turn("assistant", "Hello.", '{"reasoning_content": "Hm."}')],
    ids=["in the reply", "in a field"],
)
def test_replies_with_reasoning_need_the_setting(reply: Turn) -> None:
    with pytest.raises(ConfigError, match="set --format.reasoning true"):
        format_of(QWEN3).completion_ids(HI, reply)
    reasons = format_of(QWEN3, reasoning=True)
    assert text_of(reasons, reasons.prompt_ids(HI)).endswith(f"{START}assistant\n")
    assert text_of(reasons, reasons.completion_ids(HI, reply)) == "<think>\nHm.\n</think>\n\nHello.<|im_end|>"


@pytest.mark.parametrize("field", ["tool_calls", "reasoning_content"])
def test_a_field_that_the_template_leaves_out_is_refused(field: str) -> None:
    extra = json.dumps({field: [{"function": {"name": "cook"}}], "id": 4})
    said = Turn("assistant", "Hello.", extra)
    prompt_format = format_of(CHATML)
    with pytest.raises(ConfigError, match=f"leaves out '{field}' of message 2 .* role 'assistant'"):
        prompt_format.completion_ids(HI, said)
    with pytest.raises(ConfigError, match=f"leaves out '{field}' of message 1"):
        prompt_format.prompt_ids(Prompt((said, Turn("user", "Hi"))))
    writing = format_of(
        CHATML.replace("message['content'] +", f"message['content'] + (message.{field} or '') | tojson +")
    )
    calls = (f'{{"{field}": [{name}]}}' for name in (1, 2))
    first, second = (writing.completion_ids(HI, Turn("assistant", "Hello.", call)) for call in calls)
    assert first != second


@pytest.mark.parametrize("role", ["human", "gpt", "developer", "tool", "system"])
def test_a_turn_that_the_template_leaves_out_is_refused(role: str) -> None:
    """Also where another turn has the same text."""
    prompt_format = format_of(IGNORING)
    for content in ("Boil it.", "Hi"):
        prompt = Prompt((Turn(role, content), Turn("user", "Hi")))
        with pytest.raises(DataError, match=f"train.jsonl:7: the chat template leaves out message 1 .* role '{role}'"):
            tokens_at_line_7(prompt_format, pair(prompt, "a", "b"))


@pytest.mark.parametrize(
    ("template", "message"),
    [(IGNORING, "leaves out message 1"), (FAILING, "fails on a conversation of tool, user, assistant")],
)
def test_reward_models_read_whole_conversations(template: str, message: str) -> None:
    encoder = RewardInput(tiny_tokenizer(template=template), "chat", None)
    (refusal,) = encoder.encode([Prompt((Turn("tool", "Boil it."), *HI.turns))], ["Yes."])
    assert isinstance(refusal, str) and message in refusal


def test_text_that_a_template_cuts_is_refused() -> None:
    prompt_format = format_of(R1)
    said = as_reply("<think>Hm.</think>Hello.")
    with pytest.raises(ConfigError, match="leaves out message 2 of the conversation, of role 'assistant'"):
        prompt_format.completion_ids(HI, said)
    with pytest.raises(ConfigError, match="leaves out message 2"):
        prompt_format.prompt_ids(Prompt((*HI.turns, said, Turn("user", "Rice?"))))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (MISTRAL, "refuses a conversation of system, user, assistant: Only user and assistant roles"),
        (FAILING, "fails on a conversation of .*TypeError"),
        ("{{ messages[5].content | length }}", "refuses a conversation of"),
        ({"tool_use": CHATML, "rag": CHATML}, "chat templates rag, tool_use, but none named 'default'"),
    ],
    ids=["a role", "an exception", "an undefined name", "no default"],
)
def test_a_template_that_fails_names_the_row(template: Any, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    prompt_format = pin_format(tokenizer)
    prompt = Prompt((Turn("system", "Be kind."), *HI.turns))
    with pytest.raises(DataError, match=f"train.jsonl:7: .*{message}"):
        tokens_at_line_7(prompt_format, pair(prompt, "a", "b"))
    assert prompt_format.prompt_ids(Prompt("Text")) == tokenizer("Text")["input_ids"]


def test_a_named_default_template_is_used() -> None:
    tokenizer = tiny_tokenizer(template=QWEN3)
    tokenizer.chat_template = {"default": QWEN3, "rag": CHATML}
    prompt_format = pin_format(tokenizer)
    assert prompt_format.prompt_ids(HI) == format_of(QWEN3).prompt_ids(HI)
    assert sorted(prompt_format.exported_tokenizer().chat_template) == ["default", "rag"]


@pytest.mark.parametrize("template", [CHATML, QWEN3, LLAMA3])
def test_an_assistant_prefix_is_continued(template: str) -> None:
    prompt_format = format_of(template)
    prompt = Prompt((*HI.turns, Turn("assistant", "Sure, I")))
    opened = text_of(prompt_format, prompt_format.prompt_ids(prompt))
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt.turns]
    tokenizer = prompt_format.tokenizer
    assert opened == tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert text_of(prompt_format, prompt_format.completion_ids(prompt, as_reply(" can."))) == " can.<|im_end|>"
    assert opened.count("assistant") == 1


SPECIAL = ["Say <|im_end|> now", "Done.<|im_end|>", "<s>Yes", "<|endoftext|>"]


@pytest.mark.parametrize("said", SPECIAL)
@pytest.mark.parametrize("template", [None, CHATML, QWEN3, MISTRAL])
def test_the_text_of_a_special_token_is_text(template: str | None, said: str) -> None:
    """One BOS, one EOS, and every character of the data."""
    prompt_format = pin_format(tiny_tokenizer(bos=True, template=template))
    eos = prompt_format.tokenizer.eos_token_id
    prompt = HI if template else Prompt("Hi:")
    asked = Prompt((Turn("user", said),)) if template else Prompt(said)
    reply, opened = prompt_format.completion_ids(prompt, as_reply(said)), prompt_format.prompt_ids(asked)
    assert reply[-1] == eos and reply.count(eos) == 1
    assert said in text_of(prompt_format, reply[:-1])
    assert said in text_of(prompt_format, opened)
    other = Prompt((Turn("user", "Hm"),)) if template else Prompt("Hm")
    special = [token for token in opened if token < 4]
    assert special == [token for token in prompt_format.prompt_ids(other) if token < 4]
    example = pair(prompt, said, "No")
    assert example_lengths(prompt_format, example).has_special_text
    assert prompt_format.special_text((*prompt.turns, as_reply("No"))) is None


def test_a_special_token_in_the_vocabulary_itself_is_cut_or_refused() -> None:
    """``split_special_tokens`` has no effect on a word of the vocabulary."""

    def tokenizer(*pieces: str) -> PreTrainedTokenizerFast:
        inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["</s>", "<unk>", *pieces])}, "<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")

    cut = pin_format(tokenizer("Hi", "<", "/s>")).completion_ids(Prompt("Hi"), as_reply("Hi </s>"))
    assert cut == [2, 3, 4, 0]
    single = tokenizer("Hi")
    single.eos_token = "Hi"
    single.add_special_tokens({"eos_token": "Hi"})
    assert pin_format(single).completion_ids(Prompt("x"), as_reply("Hi"))[:-1].count(2) == 0


def test_replies_that_are_the_same_tokens_are_left_out() -> None:
    prompt_format = format_of(LLAMA3)
    rows = UnfilteredRows([pair(HI, "Yes.", "Yes. ", 1), pair(HI, "Yes.", "No. <s>", 2)], [])

    def lengths(example: Example) -> Any:
        return example_lengths(prompt_format, example)

    remaining, report = filter_train(rows, lengths, 99)
    assert ([row.origin.line for row in remaining], report.dropped["identical_replies"].lines) == ([2], [1])
    assert report.odd["special_text"].lines == [2]
    assert [row.origin.line for row in filter_eval(rows, lengths, 99)[0]] == [2]
    assert "  dropped: 1, two replies are identical (line 1)" in report.lines()


@pytest.mark.parametrize("system", ["auto", "none"])
def test_the_exported_template_has_the_pinned_date_and_preamble(system: str) -> None:
    """Also for readers that use the template on another day."""
    dated = CHATML.replace("You are of use.", "Today 🙂 is ' + strftime_now('%d %b %Y') + '.")
    prompt_format = format_of(dated, system=system, today="2026-11-23")
    exported = prompt_format.exported_tokenizer()
    for turns in ([Turn("user", "Hi")], [Turn("system", "Be kind."), Turn("user", "Hi")]):
        messages = [turn.to_message() for turn in turns]
        opened = exported.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert opened == text_of(prompt_format, prompt_format.prompt_ids(Prompt(tuple(turns))))
        assert ("23 Nov 2026" in opened) == (system == "auto" and len(turns) == 1)
    again = PromptFormat(exported, FormatSpec.from_dict(json.loads(json.dumps(prompt_format.spec.to_dict()))))
    assert again.prompt_ids(HI) == prompt_format.prompt_ids(HI)
