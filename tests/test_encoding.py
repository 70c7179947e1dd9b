"""Text to ids, by hand: what is in the prompt, what is trained, where the slot stands, what is pinned."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from meetlm.config.errors import ConfigError
from meetlm.data import hh, summarize
from meetlm.data.encoding import example_lengths
from meetlm.data.example import Origin, Prompt, Turn, as_reply
from meetlm.data.fitted_levels import PAIRS
from meetlm.data.formats import FORMATS
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.data.rows import Row
from tiny import CHATML, slots_encoder, tiny_tokenizer

SYSTEM = "<|im_start|>system\nYou are of use.<|im_end|>\n"
USER, ASSISTANT = "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>assistant\n"
HI = Prompt((Turn("user", "Hi"),))
HELLO = as_reply("Hello there.")


def row(**fields: Any) -> Row:
    return Row(fields, Origin("rows.jsonl", 1))


def shown(prompt_format: PromptFormat, ids: Any) -> str:
    return str(prompt_format.tokenizer.decode([i for i in ids if i < 1000]))


def test_a_token_without_an_embedding_is_no_slot() -> None:
    """Ids past the embeddings are virtual: one of the text would be taken for a vector of the control."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    known = len(tokenizer) - 1
    encoder = slots_encoder(pin_format(tokenizer), [[known], [known]], num_embeddings=known)
    assert encoder.prompt(Prompt("Rice?"), (1.0, 0.0))[0] == known
    with pytest.raises(ConfigError, match=f"token '<new>' has id {known}, but the model has embeddings for {known}"):
        encoder.prompt(Prompt("Rice <new>?"), (1.0, 0.0))


@pytest.mark.parametrize("bos", [False, True])
def test_hh(bos: bool) -> None:
    prompt_format = pin_format(tiny_tokenizer(bos=bos))
    example = hh.parse(
        row(
            chosen="\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Rice?\n\nAssistant: Boil it.",
            rejected="\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Rice?\n\nAssistant: No",
        )
    )
    encoder = slots_encoder(prompt_format, [[1000, 1001], [1000, 1001]])
    chosen, rejected = FORMATS["conditional"].item(encoder, PAIRS.apply([example])[0])
    opened = ("<s>" if bos else "") + "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Rice?\n\nAssistant:"
    for side, said, weights in ((chosen, " Boil it.", (0, 1)), (rejected, " No", (1, 0))):
        assert side.ids[:2] == (1000, 1001)  # the slot first, before BOS
        assert side.ids[2] == 1 or not bos
        assert shown(prompt_format, side.ids[: side.spans[0].start]) == opened
        assert shown(prompt_format, side.ids[side.spans[0].start :]) == said + "<|endoftext|>"
        assert side.ids[-1] == 0
        assert side.num_trained == len(prompt_format.tokenize(said)) + 1
        assert side.spans[0].weights == weights
    lengths = (chosen.num_trained, rejected.num_trained)
    assert example_lengths(prompt_format, example)[:2] == (chosen.spans[0].start - 2, lengths)


def test_tldr() -> None:
    info = {"id": "t3", "subreddit": "rice", "title": "Water", "post": "How?\n\nSo."}
    summaries = [{"text": " Too short"}, {"text": " Boil rice."}]
    example = summarize.parse(row(info=info, summaries=summaries, choice=1))
    prompt_format = pin_format(tiny_tokenizer())
    encoder = slots_encoder(prompt_format, [[], []])
    chosen, rejected = FORMATS["conditional"].item(encoder, PAIRS.apply([example])[0])
    expected = "SUBREDDIT: r/rice\n\nTITLE: Water\n\nPOST: How?\nSo.\n\nTL;DR:"
    for side, said in ((chosen, " Boil rice."), (rejected, " Too short")):
        assert shown(prompt_format, side.ids[: side.spans[0].start]) == expected
        assert shown(prompt_format, side.ids[side.spans[0].start :]) == said + "<|endoftext|>"


@pytest.mark.parametrize("said", [" is", "is", "\n", "n", " s good"])
def test_the_border_never_moves(said: str) -> None:
    """Prompt ids do not depend on the completion, and a completion's not on the prompt."""
    prompt_format = pin_format(tiny_tokenizer())
    encoder = slots_encoder(prompt_format, [[]])
    encoded = encoder.encode(Prompt("What i"), as_reply(said), (1.0,))
    assert list(encoded.ids[: encoded.spans[0].start]) == encoder.prompt(Prompt("What i"), (1.0,))
    assert list(encoded.ids[encoded.spans[0].start :]) == [*prompt_format.tokenize(said), 0]


@pytest.mark.parametrize(("placement", "at"), [("first", 0), ("before_response", None)])
def test_slot_and_chat_template(placement: Any, at: int | None) -> None:
    prompt_format = pin_format(tiny_tokenizer(template=CHATML))
    assert prompt_format.spec == FormatSpec(SYSTEM, "auto", (), date.today().isoformat())
    encoder = slots_encoder(prompt_format, [[1000], [2000]], placement)
    encoded = encoder.encode(HI, HELLO, (0.0, 1.0))
    assert shown(prompt_format, encoded.ids[: encoded.spans[0].start]) == SYSTEM + USER + ASSISTANT
    assert shown(prompt_format, encoded.ids[encoded.spans[0].start :]) == "Hello there.<|im_end|>"
    assert encoded.ids[-1] == 3
    assert encoded.ids.index(2000) == (encoded.spans[0].start - 1 if at is None else at)
    assert 1000 not in encoded.ids
    assert encoded.spans[0].weights == (0.0, 1.0)
    assert encoder.prompt(HI, (0.0, 1.0)) == list(encoded.ids[: encoded.spans[0].start])


def test_system_none_omits_the_automatic_message() -> None:
    prompt_format = pin_format(tiny_tokenizer(template=CHATML), system="none")
    assert prompt_format.spec.preamble == ""
    assert shown(prompt_format, prompt_format.prompt_ids(HI)) == USER + ASSISTANT
    with pytest.raises(ConfigError, match="'auto' or 'none'"):
        pin_format(tiny_tokenizer(template=CHATML), system="other")


def test_system_none_keeps_bos() -> None:
    template = "{{ '<s>' }}" + CHATML
    prompt_format = pin_format(tiny_tokenizer(bos=True, template=template), system="none")
    assert shown(prompt_format, prompt_format.prompt_ids(HI)) == "<s>" + USER + ASSISTANT
    with_preamble = pin_format(tiny_tokenizer(bos=True, template=template))
    assert shown(with_preamble, with_preamble.prompt_ids(HI)) == "<s>" + SYSTEM + USER + ASSISTANT


@pytest.mark.parametrize("system", ["auto", "none"])
def test_a_system_message_of_the_data_stays(system: str) -> None:
    prompt_format = pin_format(tiny_tokenizer(template=CHATML), system=system)
    ids = prompt_format.prompt_ids(Prompt((Turn("system", "Be kind."), *HI.turns)))
    assert shown(prompt_format, ids) == "<|im_start|>system\nBe kind.<|im_end|>\n" + USER + ASSISTANT


def test_preamble_is_pinned() -> None:
    """The template's text changes with the date; a run keeps asking in the words it was trained in."""
    then = pin_format(tiny_tokenizer(template=CHATML.replace("of use.", "of use. 23 Nov 2026")))
    later = tiny_tokenizer(template=CHATML.replace("of use.", "of use. 1 Jan 2030"))
    reloaded = PromptFormat(later, FormatSpec.from_dict(then.spec.to_dict()))
    assert reloaded.prompt_ids(HI) == then.prompt_ids(HI)
    assert "23 Nov 2026" in shown(reloaded, reloaded.prompt_ids(HI))
    assert reloaded.completion_ids(HI, HELLO) == then.completion_ids(HI, HELLO)


def test_several_turns() -> None:
    prompt_format = pin_format(tiny_tokenizer(template=CHATML))
    talk = Prompt((*HI.turns, HELLO, Turn("user", "Rice?")))
    expected = SYSTEM + USER + ASSISTANT + "Hello there.<|im_end|>\n<|im_start|>user\nRice?<|im_end|>\n" + ASSISTANT
    assert shown(prompt_format, prompt_format.prompt_ids(talk)) == expected


OPEN = "You are of use.{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
LAST = "{% if loop.last and m['role'] == 'assistant' %}"
ASK = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
TEMPLATES = {  # and how they close a reply
    "Phi": (OPEN + "{{ '<s>\n' }}" + ASK + "{% else %}{{ eos_token }}{% endif %}", "<s>\n<|im_end|>"),
    "OLMo": (
        OPEN + "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        "{% if not (loop.last and m['role'] == 'assistant') %}{{ '\n' }}{% endif %}" + ASK + "{% endif %}",
        "<|im_end|>",
    ),
    "gpt-oss": (OPEN + LAST + "{{ eos_token }}{% else %}{{ '<s>' }}{% endif %}" + ASK + "{% endif %}", "<|im_end|>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_end_replies_in_other_ways(name: str) -> None:
    template, end = TEMPLATES[name]
    tokenizer = tiny_tokenizer(template=template)
    prompt_format = pin_format(tokenizer)
    prompt, whole = prompt_format.prompt_ids(HI), prompt_format.completion_ids(HI, HELLO)
    messages = HI.messages()
    assert shown(prompt_format, prompt) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert shown(prompt_format, whole) == "Hello there." + end
    assert whole[-1] == tokenizer.eos_token_id and whole.count(tokenizer.eos_token_id) == 1
    reloaded = PromptFormat(tokenizer, FormatSpec.from_dict(prompt_format.spec.to_dict()))
    assert (reloaded.prompt_ids(HI), reloaded.completion_ids(HI, HELLO)) == (prompt, whole)
    assert prompt_format.prompt_ids(Prompt("Plain text")) == tokenizer("Plain text")["input_ids"]
    if name == "gpt-oss":
        with pytest.raises(ConfigError, match="opens a first message in"):
            pin_format(tokenizer, system="none")
    else:
        bare = pin_format(tokenizer, system="none")
        assert shown(bare, bare.prompt_ids(HI)) == shown(prompt_format, prompt).removeprefix("You are of use.")


def test_templates_that_cannot_be_pinned() -> None:
    counting = CHATML.replace("You are of use.", "' + (messages | length) | string + '")
    prompt_format = pin_format(tiny_tokenizer(template=counting))
    with pytest.raises(ConfigError, match="cannot be pinned"):
        prompt_format.prompt_ids(Prompt((*HI.turns, HELLO, *HI.turns)))


def test_conversations_need_a_template() -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        pin_format(tiny_tokenizer()).prompt_ids(HI)


def test_an_eos_is_needed() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no EOS"):
        pin_format(tokenizer)


@pytest.mark.parametrize(("bos", "start"), [(False, [0]), (True, [1])])
def test_an_empty_prompt_is_not_empty(bos: bool, start: list[int]) -> None:
    assert pin_format(tiny_tokenizer(bos=bos)).prompt_ids(Prompt("")) == start


def test_a_level_space_lines_up_the_levels_of_all_attributes() -> None:
    space = LevelSpace((Attribute("tone", ("casual", "formal"), False), Attribute("", ("q0", "q1", "q2"))))
    assert tuple(space) == ("tone=casual", "tone=formal", "q0", "q1", "q2")
    assert space.weights([1, 3]) == (0.0, 1.0, 0.0, 1.0, 0.0)
    assert (space.best, space.worst) == (space.weights([4]), space.weights([2]))
    assert space.heaviest((0.0, 1.0, -0.5, 1.5, 0.0)) == (1, 3) and space.heaviest(space.weights([0])) == (0,)
    assert LevelSpace.from_dict(space.to_dict()) == space


@pytest.mark.parametrize(
    "turns", [HI, Prompt((Turn("system", "Be kind."), *HI.turns))], ids=["automatic", "system of the data"]
)
def test_the_date_is_pinned(turns: Any) -> None:
    """Templates such as Llama 3's write today's date, into a system message of the data too."""
    dated = "{{ strftime_now('%Y') }}\n" + CHATML
    then = pin_format(tiny_tokenizer(template=dated), today="2026-11-23")
    again = PromptFormat(tiny_tokenizer(template=dated), FormatSpec.from_dict(then.spec.to_dict()))
    assert again.prompt_ids(turns) == then.prompt_ids(turns)
    assert shown(again, again.prompt_ids(turns)).startswith("2026\n")
    other = pin_format(tiny_tokenizer(template=dated), today="2031-01-01")
    assert shown(other, other.prompt_ids(turns)).startswith("2031\n")


def test_a_tokenizer_that_opens_with_a_space_does_not_double_it() -> None:
    """Older SentencePiece tokenizers add ``▁`` before any text; a reply continues the prompt, so it gets none."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "h": 3, "i": 4, ":": 5, "\n": 6, "▁h": 7, "▁hi": 8, "▁▁": 9, "hi": 10}
    inner = Tokenizer(models.BPE(vocabulary, [("▁", "h"), ("▁h", "i"), ("▁", "▁"), ("h", "i")], unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    prompt_format = pin_format(tokenizer)
    assert tokenizer.convert_ids_to_tokens(prompt_format.completion_ids(Prompt("hi:"), as_reply(" hi"))) == [
        "▁hi",
        "</s>",
    ]
    assert tokenizer.convert_ids_to_tokens(prompt_format.prompt_ids(Prompt("hi:"))) == ["▁hi", ":"]
