"""The demo: its rule, its data, how they were made, and its run from end to end."""

from __future__ import annotations

import json
import random
from collections import Counter
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from meetlm.config.errors import ConfigError, DataError, RunError
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Example, Prompt, Turn
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from meetlm.demo import build as making
from meetlm.demo import show as showing
from meetlm.demo.build import MIN_GAP, REPLIES, base_session, build, pairs_of, read_prompts, sample, tidy
from meetlm.demo.rule import first_person
from meetlm.demo.show import GREEDY, SYSTEMS, DemoResult, demo_config, run_demo
from meetlm.generation.session import Session
from meetlm.generation.settings import Sampling
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import ModelSettings, load_lm
from reporters import RecordingReporter
from run_folders import local_model, write_pairs
from tiny import CHATML, tiny_lm, tiny_policy

PACKAGE = Path(str(resources.files("meetlm.demo")))


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("42 — !", 0.0),
        ("I", 1.0),
        ("I'm", 1.0),
        ("I\u2019m here.", 1 / 2),
        ("I've; I'll; I'd", 1.0),
        ("MY way, me? Mine. Myself!", 4 / 5),
        ("In it, is mine", 1 / 4),
        ("Amy's army mined 3 mimes", 0.0),
        ("'I am,' she said", 1 / 4),
        ("It isn't me", 1 / 3),
    ],
)
def test_rule(text: str, share: float) -> None:
    assert first_person(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("reply", "tidied"),
    [
        ("I like rice with my soup. And then wa", "I like rice with my soup."),
        ("  I like rice with my soup! ", "I like rice with my soup!"),
        ("One is rice. Two is soup. Three is", "One is rice. Two is soup."),
        ('He said "I like my soup." And wa', 'He said "I like my soup."'),
        (
            "\u201cI\u2019m fond of my soup,\u201d he \u2014 Tom \u2013 said.",
            '"I\'m fond of my soup," he - Tom - said.',
        ),
        ("I paid 3.50 for all my soup", None),  # the point ends no sentence
        ("I paid 3.50 for it. And 4.20 for", None),  # five words are left
        ("I paid 3.50 for it all. And 4.20 for", "I paid 3.50 for it all."),
        ("I like rice with my soup", None),
        ("I like my soup.", None),
        ("", None),
        ("I like a caf\u00e9 with good soup.", None),
        ("I like rice with my soup. Caf\u00e9", "I like rice with my soup."),
        ("I like ```rice``` with my soup.", None),
        ("I like [rice] with my soup.", None),
        ("I like rice = soup with it.", None),
        ("I like my rice.\n\nI like my soup.", None),
        ("I like my rice.\nI like my soup.", "I like my rice.\nI like my soup."),
    ],
)
def test_tidy(reply: str, tidied: str | None) -> None:
    assert tidy(reply) == tidied


def reply(own: int, words: int = 10, mark: str = "a") -> str:
    """A reply of which ``own`` words are the first person's."""
    return " ".join(["I"] * own + ["so"] * (words - own - 1) + [mark]) + "."


def test_pairs_are_best_and_worst_then_the_second_ones() -> None:
    replies = [reply(own) for own in (3, 0, 5, 2, 1, 4)]
    pairs = [(chosen.text, rejected.text) for chosen, rejected in pairs_of(replies)]
    assert pairs == [(reply(5), reply(0)), (reply(4), reply(1))]
    ((chosen, rejected), _) = pairs_of(replies)
    assert (chosen.score, rejected.score) == (0.5, 0.0)


@pytest.mark.parametrize(("count", "pairs"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (9, 2)])
def test_pairs_need_two_replies_each(count: int, pairs: int) -> None:
    assert len(pairs_of([reply(own) for own in range(count)])) == pairs


def test_pairs_differ_enough() -> None:
    assert MIN_GAP == 1 / 25
    assert len(pairs_of([reply(1, 25), reply(0, 25)])) == 1
    assert pairs_of([reply(1, 26), reply(0, 26)]) == []
    outer = [reply(5), reply(0)]
    assert len(pairs_of([*outer, reply(2, mark="a"), reply(2, mark="b")])) == 1  # the second pair is a tie


def test_pairs_do_not_depend_on_the_order_of_replies() -> None:
    replies = [reply(own, mark=mark) for own in (4, 0) for mark in ("a", "b", "c")]
    first = pairs_of(replies)
    for seed in range(5):
        assert pairs_of(random.Random(seed).sample(replies, len(replies))) == first
    texts = [(chosen.text, rejected.text) for chosen, rejected in first]
    assert texts == [(reply(4, mark="a"), reply(0, mark="c")), (reply(4, mark="b"), reply(0, mark="b"))]
    assert pairs_of([*replies, *replies]) == first
    assert pairs_of([reply(4)] * 6) == []
    assert pairs_of([reply(4), reply(0)[:-1]]) == []  # what is not tidy takes no part


def test_prompts() -> None:
    rows = read_prompts()
    assert all(row.keys() == {"topic", "prompt"} for row in rows)
    assert len(rows) == len({row["prompt"] for row in rows}) == 500
    assert set(Counter(row["topic"] for row in rows).values()) == {20}
    assert len({row["topic"] for row in rows}) == 25
    assert all(row["prompt"].isascii() and row["prompt"] == row["prompt"].strip() for row in rows)


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def check_rows(folder: Path, prompts: list[dict[str, str]]) -> None:
    """Whatever holds of every set that ``build`` writes."""
    topic_of = {row["prompt"]: row["topic"] for row in prompts}
    topics, seen = {}, set()
    for split in ("train", "test"):
        rows = rows_of(folder, split)
        settings = DataSettings(source="pairs", train_file=str(folder / f"{split}.jsonl"))
        examples = read_examples(settings, "train").rows
        assert len(rows) == len(examples) > 0
        for row, example in zip(rows, examples, strict=True):
            prompt, chosen, rejected = texts(example)
            assert topic_of[prompt] == row["topic"]
            assert tidy(chosen) == chosen
            assert tidy(rejected) == rejected
            high, low = first_person(chosen), first_person(rejected)
            assert (row["score_chosen"], row["score_rejected"]) == (round(high, 4), round(low, 4))
            assert high - low >= MIN_GAP
            assert (prompt, chosen, rejected) not in seen
            seen.add((prompt, chosen, rejected))
        topics[split] = {row["topic"] for row in rows}
        most = Counter(example.group for example in examples).most_common(1)[0][1]
        assert most <= (2 if split == "train" else 1)
    assert topics["train"].isdisjoint(topics["test"])
    assert len(topics["test"]) <= making.HELD_OUT_TOPICS


def texts(example: Example) -> tuple[str, str, str]:
    """The three texts of a conversation of one message and one reply."""
    (prompt,) = example.prompt.turns
    assert example.prompt.is_chat
    assert [turn.role for turn in (prompt, *example.replies)] == ["user", "assistant", "assistant"]
    chosen, rejected = (reply.content for reply in example.replies)
    return prompt.content, chosen, rejected


def test_the_package_s_pairs() -> None:
    check_rows(PACKAGE, read_prompts())
    config = demo_config([])
    assert config.data.limit_train and len(rows_of(PACKAGE, "train")) >= config.data.limit_train
    assert config.data.limit_eval and len(rows_of(PACKAGE, "test")) >= config.data.limit_eval
    assert len({row["topic"] for row in rows_of(PACKAGE, "test")}) == making.HELD_OUT_TOPICS


def test_config() -> None:
    config = demo_config([])
    assert (config.recipe, config.preset, config.model.name) == ("demo", "small", "smollm2")
    assert config.data.train_file == str(PACKAGE / "train.jsonl")
    assert config.data.eval_file == str(PACKAGE / "test.jsonl")
    assert (config.data.limit_train, config.format.system, config.control.kind) == (200, "none", "lora")
    assert [(stage.name, stage.train) for stage in config.stages] == [("step1", ("control",)), ("step2", BOTH)]
    assert [stage.num_steps(200, config.batch.pairs) for stage in config.stages] == [100, 50]


BOTH = ("control", "lm")


def test_overrides_win() -> None:
    words = ["--stages.step1.lr", "0.5", "data.train_file=mine.jsonl", "model.name=other", "--control.rank=2"]
    config, plain = demo_config(words), demo_config([])
    assert (config.stages[0].lr, config.model.name) == (0.5, "other")
    assert (config.data.train_file, config.data.eval_file) == ("mine.jsonl", plain.data.eval_file)
    assert config.control.model_dump()["rank"] == 2
    assert config.stages[1] == plain.stages[1]
    with pytest.raises(ConfigError, match="did you mean 'pairs'"):
        demo_config(["batch.pears=3"])


def test_a_package_in_an_odd_place_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "1: a #b, {c}"
    odd.mkdir()
    (odd / "demo.yaml").write_text((PACKAGE / "demo.yaml").read_text())
    monkeypatch.setattr(showing, "resources", SimpleNamespace(files=lambda name: odd))
    assert demo_config([]).data.train_file == str(odd / "train.jsonl")


WORDS = ("I", "my", "me", "so", "the", "rice", "soup", "good", "we", "you.", "it.", "well!")


@pytest.fixture
def talker() -> Session:
    """A random model whose tokens are words, so that its replies have sentences and first persons."""
    vocabulary = ["<|im_end|>", "<|im_start|>", "<unk>", *WORDS]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    policy = tiny_policy("llama", "none", lm=tiny_lm("llama", vocab_size=len(vocabulary)))
    return Session(policy, pin_format(tokenizer, system="none"))


def test_build(talker: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [{"topic": f"t{n % 8}", "prompt": f"What good is the soup so {'so ' * n}?"} for n in range(32)]
    monkeypatch.setattr(making, "base_session", lambda: talker)
    monkeypatch.setattr(making, "read_prompts", lambda: prompts)
    written = {}
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        reporter = RecordingReporter()
        counts = build(tmp_path / name, seed=seed, reporter=reporter)
        assert sum(reporter.counts) == 32 * REPLIES
        assert counts == {split: len(rows_of(tmp_path / name, split)) for split in ("train", "test")}
        written[name] = {split: (tmp_path / name / f"{split}.jsonl").read_bytes() for split in counts}
        check_rows(tmp_path / name, prompts)
        train = [row["prompt"][0]["content"] for row in rows_of(tmp_path / name, "train")]
        firsts = len(set(train))
        assert len(set(train[:firsts])) == firsts < len(train)  # a prompt's widest pair before any second one
    assert written["one"] == written["two"]
    assert written["one"]["train"] != written["other"]["train"]
    assert written["one"]["test"] != written["other"]["test"]
    best = [best_of(tmp_path / name) for name in ("one", "other")]
    both = best[0].keys() & best[1].keys()
    assert sum(best[0][prompt] != best[1][prompt] for prompt in both) > len(both) / 2 > 0


def best_of(folder: Path) -> dict[str, str]:
    """The best reply to each prompt."""
    rows = [row for split in ("train", "test") for row in reversed(rows_of(folder, split))]
    return {row["prompt"][0]["content"]: row["chosen"][0]["content"] for row in rows}


def test_sample_has_a_stream_for_each_reply(talker: Session) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.0)
    asked = ["the soup ?", "the rice so good ?"]
    several = sample(talker, asked, sampling, replies=3, seed=1)
    assert [len(texts) for texts in several] == [3, 3]
    assert len({text for texts in several for text in texts}) == 6
    assert sample(talker, asked, sampling, replies=3, seed=1) == several
    assert sample(talker, asked, sampling, replies=3, seed=2) != several


SHORT = (
    "model.device=cpu",
    "data.max_length=900",
    "data.limit_train=8",
    "data.limit_eval=4",
    "batch.pairs=4",
    "control.rank=2",
    "stages.step1.min_steps=2",
    "stages.step2.min_steps=2",
    "stages.step2.lr=1e-3",
)


@pytest.fixture
def short(tmp_path: Path) -> list[str]:
    """Overrides of the demo: a tiny model, few rows, few steps."""
    return [*SHORT, f"model.name={local_model(tmp_path / 'lm', 'llama', template=CHATML)}"]


def run(folder: Path, words: list[str], reporter: Reporter = SILENT) -> DemoResult:
    return run_demo(folder, words, prompts=5, shown=2, reporter=reporter)


def test_run(tmp_path: Path, short: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, reporter = tmp_path / "run", RecordingReporter()
    monkeypatch.setattr(showing, "first_person", lambda text: len(text) % 7 / 7)  # its replies are no words
    first = run_demo(folder, short, prompts=5, shown=2, reporter=reporter)
    said = reporter.messages
    assert sum(reporter.counts[-2 * len(SYSTEMS) :]) == len(SYSTEMS) * (5 + 2)
    assert tuple(first.scores) == SYSTEMS
    assert all(0 <= rate.low <= rate.value <= rate.high <= 1 for rate in first.scores.values())
    expected = first.scores["good"].value - first.scores["bad"].value
    assert first.difference.value == pytest.approx(expected)
    assert expected != 0
    assert list(first.accuracy) == ["before training", "after step1", "after step2"]
    assert first.accuracy["before training"].value == 0.5
    assert json.loads((folder / "demo.json").read_text()) == first.to_dict()
    asked = [row["prompt"][0]["content"] for row in rows_of(PACKAGE, "test")]
    assert [example["prompt"] for example in first.examples] == asked[:2]
    assert all(example.keys() == {"prompt", *SYSTEMS} for example in first.examples)
    assert any(line.startswith("step2: 2 steps") for line in said)
    assert not any("finished run" in line for line in said)

    meet = (folder / "meet.json").stat().st_mtime_ns
    said.clear()
    again = run(folder, short, reporter)
    assert said == [
        f"using the finished run in {folder}",
        "sampling replies to 5 held-out prompts: good, bad, base model",
    ]
    assert (again.scores, again.examples, again.accuracy) == (first.scores, first.examples, first.accuracy)
    assert (folder / "meet.json").stat().st_mtime_ns == meet


def test_the_base_model_is_the_run_s_own_model_before_it(
    tmp_path: Path, short: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[ModelSettings] = []

    def load(settings: ModelSettings) -> Any:
        asked_for.append(settings)
        return load_lm(settings)

    monkeypatch.setattr(making, "load_lm", load)
    words = [*short, "format.system=auto"]
    result = run(tmp_path / "run", words)
    assert asked_for == [demo_config(words).model]
    lm, tokenizer = load_lm(ModelSettings(name=str(tmp_path / "lm"), device="cpu"))
    session = Session(
        tiny_policy("llama", "none", lm=lm), pin_format(tokenizer)
    )  # the system message that it was given
    prompts = [example["prompt"] for example in result.examples]
    replies = sample(session, prompts, GREEDY, replies=1, seed=0)
    assert [example["base model"] for example in result.examples] == [texts[0] for texts in replies]
    assert [example["good"] for example in result.examples] != [texts[0] for texts in replies]


def test_base_session_takes_a_format(tmp_path: Path) -> None:
    model = ModelSettings(name=str(local_model(tmp_path, "llama", template=CHATML)), device="cpu")
    spec = base_session(model).format.spec
    assert (spec.preamble, spec.system, spec.stop) == ("", "none", ())
    spec = FormatSpec("Of last year.\n", "auto", ("###",))
    session = base_session(model, spec)
    assert isinstance(session.format, PromptFormat)
    assert session.format.spec == spec
    assert session.format.decode(session.format.prompt_ids(Prompt((Turn("user", "Hi"),)))).startswith("Of last year.\n")


def test_a_finished_run_of_something_else_is_refused(tmp_path: Path, short: list[str]) -> None:
    folder, train = tmp_path / "run", tmp_path / "train.jsonl"
    words = [*short, f"data.train_file={write_pairs(train, 12, chat=True)}"]
    run(folder, words)
    before = (folder / "config.yaml").read_bytes(), (folder / "demo.json").read_bytes()
    with pytest.raises(RunError, match=r"run holds a run of another(?s:.*)seed was 0, is now 5") as raised:
        run(folder, [*words, "seed=5", "stages.step1.lr=0.5"])
    assert "lr was 0.001, is now 0.5" in str(raised.value)
    assert "is now" not in str(raised.value).replace("is now 5", "").replace("is now 0.5", "")
    lines = train.read_text().splitlines(keepends=True)
    train.write_text("".join([*lines[1:], lines[0]]))
    with pytest.raises(RunError, match="run holds a run of other data"):
        run(folder, words)
    train.write_text("".join(lines))
    assert ((folder / "config.yaml").read_bytes(), (folder / "demo.json").read_bytes()) == before
    reporter = RecordingReporter()
    run(folder, [*words, "model.device=auto", "batch.micro_pairs=1"], reporter)  # the result would be the same
    assert reporter.messages[0] == f"using the finished run in {folder}"
    (folder / "config.yaml").unlink()
    with pytest.raises(RunError, match=r"without its config\.yaml"):
        run(folder, words)
    assert not (folder / "config.yaml").exists()


@pytest.mark.parametrize(
    "prompt",
    [
        "Hi",
        [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}],
        [{"role": "system", "content": "Hi"}],
    ],
)
def test_what_cannot_be_asked_is_refused_before_training(prompt: Any, tmp_path: Path, short: list[str]) -> None:
    file = tmp_path / "test.jsonl"
    sides: Any = ("Yes.", "No.")
    if not isinstance(prompt, str):
        sides = [[{"role": "assistant", "content": text}] for text in sides]
    file.write_text(json.dumps({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]}) + "\n")
    with pytest.raises(DataError, match=r"test\.jsonl:1: field 'prompt': .* one message with the role user"):
        run(tmp_path / "run", [*short, f"data.eval_file={file}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_demo_itself_shortened(tmp_path: Path) -> None:
    """SmolLM2, both steps, three and two steps of two pairs."""
    words = [
        "model.device=cpu",
        "data.limit_train=12",
        "data.limit_eval=6",
        "stages.step1.epochs=0.5",
        "stages.step1.min_steps=1",
        "stages.step2.epochs=0.3",
        "stages.step2.min_steps=1",
    ]
    folder = tmp_path / "run"
    result = run_demo(folder, words, prompts=4, shown=0)
    lm, _ = load_lm(ModelSettings(name="smollm2", device="cpu"))
    start = sha256_of(lm)
    stages = {name: json.loads((folder / name / "stage.json").read_text()) for name in ("step1", "step2")}
    assert stages["step1"]["lm_sha256"] == start != stages["step2"]["lm_sha256"]
    lines = {name: (folder / name / "metrics.jsonl").read_text().splitlines() for name in stages}
    assert {name: len(of) for name, of in lines.items()} == {"step1": 3, "step2": 2}
    parts = ("config.yaml", "preference.json", "meet.json", "control.safetensors", "demo.json")
    parts += ("model/model.safetensors", "controls/good/adapter_model.safetensors", "controls/bad/adapter_config.json")
    assert [part for part in parts if not (folder / part).is_file()] == []
    assert yaml.safe_load((folder / "config.yaml").read_text())["config"]["model"]["name"] == "smollm2"
    assert result.accuracy["before training"].value == 0.5
    assert list(result.accuracy) == ["before training", "after step1", "after step2"]
    assert tuple(result.scores) == SYSTEMS
    assert result.examples == []
