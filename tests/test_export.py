"""Exports compute what the run computes, as the other tool reads them; a broken export fails the check."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import meetlm
from gemma import gemma_run
from meetlm.cli import main
from meetlm.config.errors import ConfigError, RunError
from meetlm.config.overrides import Override
from meetlm.export.base import EXPORTERS, Export, Exporter
from meetlm.export.low_rank import truncate
from meetlm.export.settings import ExportSettings
from meetlm.run.execute import execute
from reporters import RecordingReporter
from run_folders import config_for
from tiny import CHATML

peft = pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),  # PEFT's
]
MIX = {"good": 1.5, "bad": -0.5}
GEMMA_LIKE = {"chat": True, "template": "{{ bos_token }}" + CHATML, "bos": True}
"""A template that writes BOS, with a tokenizer that adds one to plain text."""


def run_of(folder: Path, architecture: str, kind: str, /, *, chat: bool = False, **more: Any) -> Path:
    """Train a tiny run and return its folder; ``control`` has settings of the control, the rest is the tokenizer's."""
    overrides = [Override(f"control.{key}", str(value)) for key, value in more.pop("control", {}).items()]
    config = config_for(folder / "inputs", architecture, kind, *overrides, chat=chat, **more)
    lm = AutoModelForCausalLM.from_pretrained(config.model.name)
    lm.resize_token_embeddings(300)  # as many as the tokenizer has: a random model would generate the others too
    lm.save_pretrained(config.model.name)
    execute(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of conversations with a LoRA."""
    return run_of(tmp_path_factory.mktemp("lora"), "gemma3", "lora", **GEMMA_LIKE)


@pytest.fixture(scope="module")
def soft_prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of conversations with a soft prompt; its embedding table has no free rows."""
    folder = tmp_path_factory.mktemp("soft-prompt")
    return run_of(folder, "gemma3", "soft-prompt", **GEMMA_LIKE)


@pytest.fixture(scope="module")
def activated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of conversations with a LoRA of scope ``response``."""
    folder = tmp_path_factory.mktemp("activated")
    return run_of(folder, "llama", "lora", control={"scope": "response"}, chat=True, template=CHATML)


def difference(run: Path, to: str, levels: Any, out: Path, **more: Any) -> float:
    """Export and return the largest difference of a log-prob."""
    result = meetlm.export_run(run, to, levels, out=out, limit=2, **more)
    assert result.parity is not None
    return result.parity.largest


@pytest.mark.parametrize("kind", ["lora", "soft_prompt", "activated"])
def test_peft(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    assert difference(run, "peft", [], tmp_path / "levels") < 1e-4
    assert difference(run, "peft", [MIX], tmp_path / "mix") < 1e-4
    configs = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("adapter_config.json")}
    assert set(configs) == {"bad", "good", "good=1.5,bad=-0.5"}
    assert [config.get("modules_to_save") for config in configs.values()] == [None] * 3
    if kind != "soft_prompt":
        assert (configs["good"]["r"], configs["good=1.5,bad=-0.5"]["r"]) == (2, 4)
    record = json.loads((tmp_path / "levels" / "export.json").read_text())
    assert record["parity"]["passes"] and record["format"] == "peft"


@pytest.mark.parametrize("kind", ["lora", "soft_prompt"])
def test_merged(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)
    for level in ("bad", MIX):
        assert difference(run, "merged", [level], tmp_path / "export") < 1e-4


@pytest.mark.parametrize(
    ("architecture", "kind", "control"),
    [
        ("gpt2", "lora", {}),
        ("llama", "soft-prompt", {}),
        ("gpt2", "soft-prompt", {"placement": "before_response"}),
        ("llama", "special-token", {}),
    ],
)
def test_runs_of_plain_text(architecture: str, kind: str, control: dict[str, str], tmp_path: Path) -> None:
    run = run_of(tmp_path, architecture, kind, control=control, bos=True)
    assert difference(run, "merged", [], tmp_path / "merged") < 1e-4
    if not control:
        assert difference(run, "peft", [], tmp_path / "peft") < 1e-4


def test_several_attributes_are_one_lora(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Tell me about {i}.",
            "completion": f"It is {tone} {i}.",
            "attributes": {"tone": tone, "length": j},
        }
        for i in range(40)
        for j, tone in enumerate(("casual", "formal"))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data.source": "feedback", "data.path": str(tmp_path / "rows.jsonl"), "data.holdout": "10"}
    nothing = {"data.train_file": "null", "data.eval_file": "null"}
    overrides = [Override(key, value) for key, value in (settings | nothing).items()]
    execute(config_for(tmp_path / "inputs", "llama", "lora", *overrides), tmp_path / "run")
    level = {"tone": "formal", "length": 0.25}
    assert difference(tmp_path / "run", "peft", [level], tmp_path / "peft") < 1e-4
    (config,) = (tmp_path / "peft").glob("*/adapter_config.json")
    assert json.loads(config.read_text())["r"] == 6
    assert difference(tmp_path / "run", "merged", [level], tmp_path / "merged") < 1e-4


PIPELINE = """
import json, sys
from transformers import pipeline
generate = pipeline("text-generation", model=sys.argv[1])
prompt = json.loads(sys.argv[2])
print(json.dumps(generate(prompt, max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]))
assert not {"peft", "meetlm"} & set(sys.modules)
"""


@pytest.mark.slow
def test_merged_soft_prompt_is_a_plain_model_for_a_pipeline(soft_prompt: Path, tmp_path: Path) -> None:
    result = meetlm.export_run(soft_prompt, "merged", ["good"], out=tmp_path / "model", limit=1)
    prompt = [{"role": "user", "content": "What is rice?"}]
    arguments = [sys.executable, "-W", "ignore", "-c", PIPELINE, str(result.folder), json.dumps(prompt)]
    process = subprocess.run(arguments, capture_output=True, text=True, check=True)
    (reply,) = meetlm.load(soft_prompt).generate([prompt], "good", max_new_tokens=12)
    assert json.loads(process.stdout).strip() == reply
    config = json.loads((result.folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert json.loads((result.folder / "tokenizer_config.json").read_text())["add_bos_token"] is False


def test_added_tokens_are_never_generated(soft_prompt: Path, tmp_path: Path) -> None:
    result = meetlm.export_run(soft_prompt, "merged", ["good"], out=tmp_path / "model", limit=1)
    assert result.parity is not None
    (note,) = result.parity.notes
    assert note.startswith("added tokens have a probability of up to ")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert exported.get_output_embeddings().weight.shape[0] == 303
    assert exported.generation_config.suppress_tokens == [300, 301, 302]


def test_an_activated_lora_begins_at_the_last_prompt_token(activated: Path, tmp_path: Path) -> None:
    """PEFT's traps: without its token the LoRA is off; in a forward pass it begins at that token in a reply."""
    meetlm.export_run(activated, "peft", ["good"], out=tmp_path / "export", limit=1)
    aligned = meetlm.load(activated)
    base = AutoModelForCausalLM.from_pretrained(activated / "model", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "export" / "good").eval()
    prompt = aligned.format.prompt_ids(aligned.parse_prompt(0, [{"role": "user", "content": "Hi"}]))
    (token,) = model.peft_config["default"].alora_invocation_tokens
    assert prompt[-1] == token

    def logits(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]

    def base_logits(ids: list[int]) -> torch.Tensor:
        with torch.no_grad(), model.disable_adapter():
            return model(torch.tensor([ids])).logits[0]

    absent = [other for other in prompt if other != token]
    assert torch.equal(logits(absent), base_logits(absent))
    assert torch.allclose(logits(prompt)[:-1], base_logits(prompt)[:-1], atol=1e-5)
    assert not torch.allclose(logits(prompt)[-1], base_logits(prompt)[-1], atol=1e-2)
    inside = [*prompt, 40, token, 41]
    assert torch.allclose(logits(inside)[: len(prompt) + 1], base_logits(inside)[: len(prompt) + 1], atol=1e-5)


def test_a_reply_that_holds_the_invocation_token(activated: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """``generate`` finds the beginning in the prompt: the check, which uses it, passes."""
    from meetlm.run import export as run_export

    def with_token(*args: Any) -> Any:
        cases = original(*args)
        token = cases[0].ids[-1]
        replies = [(case.reply[0], token, *case.reply[2:]) for case in cases]
        return [forced(args[0], case, reply) for case, reply in zip(cases, replies, strict=True)]

    original = run_export.record_cases
    monkeypatch.setattr(run_export, "record_cases", with_token)
    assert difference(activated, "peft", ["good"], tmp_path / "export") < 1e-4


def forced(policy: Any, case: Any, reply: tuple[int, ...]) -> Any:
    """Return a case with another reply."""
    from dataclasses import replace

    from meetlm.generation.decoding import Branch, decoder_of

    with torch.no_grad():
        decoder = decoder_of(policy)
        rows = [decoder.add({0: Branch(case.ids, case.weights)}, {0: len(reply)})[0]]
        rows += [decoder.step(torch.tensor([token]))[0] for token in reply[:-1]]
    top = torch.stack(rows).log_softmax(-1).topk(20)
    return replace(case, reply=reply, candidates=top.indices, log_probs=top.values)


def test_prompts_without_a_fixed_end_have_no_activated_lora(tmp_path: Path) -> None:
    run = run_of(tmp_path, "llama", "lora", control={"scope": "response"})
    lines = [json.dumps({"prompt": f"Tell me {word}", "chosen": "a", "rejected": "b"}) for word in ("this", "that")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    result = CliRunner().invoke(
        main, ["export", str(run), "--to", "peft", "--data.path", str(tmp_path / "pairs.jsonl")]
    )
    assert result.exit_code == 1
    assert "the held-out prompts end in 2 different ones; train with scope all" in result.stderr


def test_scope_response_cannot_be_merged(activated: Path) -> None:
    with pytest.raises(RunError, match="this control has scope response: train with scope all"):
        meetlm.export_run(activated, "merged")


def test_max_rank(lora: Path, tmp_path: Path) -> None:
    reporter = RecordingReporter()
    settings = ExportSettings(max_rank=3)
    largest = difference(lora, "peft", [MIX], tmp_path / "export", settings=settings, tolerance=9.0, reporter=reporter)
    assert largest > 1e-3
    (folder,) = (tmp_path / "export").glob("good*")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3
    assert any("rank 3 leaves out" in text for text in reporter.messages)
    with pytest.raises(RunError, match="--tolerance accepts more than 0.001"):
        meetlm.export_run(lora, "peft", [MIX], out=tmp_path / "export", settings=settings)
    assert difference(lora, "peft", [MIX], tmp_path / "export", settings=ExportSettings(max_rank=4)) < 1e-4


def test_truncation_is_the_best_approximation() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 10, generator=generator), torch.randn(7, 4, generator=generator)
    state = {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b}
    truncated, error = truncate(state, 2)
    product = truncated["base_model.model.x.lora_B.weight"] @ truncated["base_model.model.x.lora_A.weight"]
    values = torch.linalg.svdvals(b @ a)
    assert float((product - b @ a).norm()) == pytest.approx(float(values[2:].norm()), rel=1e-4)
    assert error == pytest.approx(float(values[2:].norm() / values.norm()), rel=1e-4)


def with_other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("You are of use.", "You are evil."))


def without_bos(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", ""))


def with_two_bos(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"))


def with_other_level(folder: Path) -> None:
    good, bad = (folder / level / "adapter_model.safetensors" for level in ("good", "bad"))
    states = load_file(good), load_file(bad)
    save_file(states[0], bad, {"format": "pt"})
    save_file(states[1], good, {"format": "pt"})


def with_scaled_vectors(folder: Path) -> None:
    """Gemma's embedding multiplies by the square root of the hidden size."""
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.embed_tokens.weight"][300:] *= 24**0.5
    save_file(state, file, {"format": "pt"})


DIFFERENT_IDS, DIFFERENT_LOG_PROBS = (
    "token ids of the prompt differ at position",
    "the largest difference of a log-prob",
)


@pytest.mark.parametrize(
    ("kind", "to", "spoil", "message"),
    [
        ("lora", "peft", with_other_template, DIFFERENT_IDS),
        ("lora", "merged", with_other_template, DIFFERENT_IDS),
        ("lora", "vllm", with_other_template, DIFFERENT_IDS),
        ("lora", "peft", without_bos, DIFFERENT_IDS),
        ("lora", "merged", without_bos, DIFFERENT_IDS),
        ("lora", "vllm", without_bos, DIFFERENT_IDS),
        ("soft_prompt", "merged", without_bos, DIFFERENT_IDS),
        ("lora", "peft", with_two_bos, DIFFERENT_IDS),
        ("lora", "merged", with_two_bos, DIFFERENT_IDS),
        ("lora", "vllm", with_two_bos, DIFFERENT_IDS),
        ("soft_prompt", "merged", with_two_bos, DIFFERENT_IDS),
        ("lora", "peft", with_other_level, DIFFERENT_LOG_PROBS),
        ("lora", "vllm", with_other_level, DIFFERENT_LOG_PROBS),
        ("soft_prompt", "peft", with_other_level, DIFFERENT_LOG_PROBS),
        ("activated", "peft", with_other_level, DIFFERENT_LOG_PROBS),
        ("soft_prompt", "merged", with_scaled_vectors, DIFFERENT_LOG_PROBS),
    ],
)
def test_a_broken_export_fails(
    kind: str, to: str, spoil: Any, message: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: Any
) -> None:
    exporter = EXPORTERS[to]

    def write_broken(self: Exporter, export: Export, **more: Any) -> None:
        write(self, export, **more)
        spoil(export.folder)

    write = exporter.write
    monkeypatch.setattr(exporter, "write", write_broken)
    arguments = ["export", str(request.getfixturevalue(kind)), "--to", to, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*arguments, "--limit", "1"])
    assert result.exit_code == 1
    assert "does not compute what the run computes; do not use this export" in result.stderr
    assert message in result.stderr
    assert json.loads((tmp_path / "out" / "export.json").read_text())["parity"]["passes"] is False


@pytest.mark.parametrize("kind", ["lora", "soft_prompt"])
def test_a_merged_model_of_the_other_level_fails(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_other_level(self: Exporter, export: Export, **more: Any) -> None:
        other = {level: weights[::-1] for level, weights in export.levels.items()}
        write(self, dataclasses.replace(export, levels=other), **more)

    write = EXPORTERS["merged"].write
    monkeypatch.setattr(EXPORTERS["merged"], "write", write_other_level)
    with pytest.raises(RunError, match=DIFFERENT_LOG_PROBS):
        meetlm.export_run(request.getfixturevalue(kind), "merged", ["good"], out=tmp_path / "out", limit=1)


def test_command(lora: Path, tmp_path: Path) -> None:
    arguments = ["export", str(lora), "--to", "peft", "--level", "good", "--limit", "1", "--out", str(tmp_path / "out")]
    run = partial(CliRunner().invoke, main)
    result = run([*arguments, "--no-verify"])
    assert result.exit_code == 0, result.output
    assert "was not compared with the run (--no-verify)" in result.stderr
    assert "AutoPeftModelForCausalLM" in result.stdout
    result = run([*arguments, "--base", "me/my-model", "--json"])
    assert result.exit_code == 0, result.output
    assert "largest difference of" in result.stderr
    assert json.loads(result.stdout)["parity"]["largest"] < 1e-3
    config = json.loads((tmp_path / "out" / "good" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/my-model"
    result = run([*arguments, "--tolerance", "0"])
    assert result.exit_code == 1 and "does not compute what the run computes" in result.stderr


def test_wrong_options(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown export format 'pft'; did you mean 'peft'"):
        meetlm.export_run(lora, "pft")
    with pytest.raises(ConfigError, match="--max-rank has no effect with --to merged"):
        meetlm.export_run(lora, "merged", settings=ExportSettings(max_rank=3))
    with pytest.raises(ConfigError, match="--to merged exports one level, and there are 2"):
        meetlm.export_run(lora, "merged", ["bad", "good"])
    with pytest.raises(RunError, match="all weights of a level are 0"):
        meetlm.export_run(lora, "peft", [{"good": 0}])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files"):
        meetlm.export_run(lora, "peft", out=tmp_path)


def test_model_card(lora: Path, tmp_path: Path) -> None:
    result = meetlm.export_run(lora, "peft", ["good"], out=tmp_path / "out", limit=1, base="me/base")
    card = ModelCard.load(result.folder / "README.md")
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-generation"
    assert card.data.tags == ["meetlm", "controllable-generation", "alignment"]
    for text in (
        "| `good` | good 1 |",
        "after step2: preference accuracy",
        "| control: rank | 2 |",
        "largest difference",
    ):
        assert text in card.text
    assert "No safe range was measured" in card.text
    assert card.data.to_dict() == yaml.safe_load(card.content.split("---")[1])  # as the hub reads it
    unchecked = meetlm.export_run(lora, "peft", ["good"], out=tmp_path / "out", limit=1, verify=False)
    assert "was not compared with the run" in (unchecked.folder / "README.md").read_text()


def test_push_to_hub(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meetlm.run import model_card

    calls: list[Any] = []

    class Hub:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
            calls.append((name, private, exist_ok))
            return f"https://huggingface.co/{name}"

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr(model_card, "HfApi", Hub)
    arguments = ["export", str(lora), "--to", "peft", "--level", "good", "--limit", "1", "--out", str(tmp_path / "out")]
    run = partial(CliRunner().invoke, main)
    result = run([*arguments, "--push-to-hub", "me/mine"])
    assert result.exit_code == 1 and "--push-to-hub requires --base" in result.stderr
    arguments += ["--base", "me/base", "--push-to-hub", "me/mine", "--private"]
    monkeypatch.setattr(model_card, "hub_is_reachable", lambda: False)
    result = run(arguments)
    assert (
        result.exit_code == 1 and "--push-to-hub me/mine: the hub cannot be reached; the export is in" in result.stderr
    )
    monkeypatch.setattr(model_card, "hub_is_reachable", lambda: True)
    result = run(arguments)
    assert result.exit_code == 0, result.output
    assert "uploaded to https://huggingface.co/me/mine" in result.stderr
    assert calls[0] == ("me/mine", True, True)
    assert {"README.md", "export.json", "good", "tokenizer.json"} <= set(calls[1][1])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("me/base", "adapter")
    assert "```\nhf download me/mine --local-dir mine\n```" in card.text and "from_pretrained('mine/good')" in card.text
    assert str(tmp_path) not in card.content
    assert run([*arguments[:-3], "--private"]).exit_code == 2


def test_adapters_of_a_trained_model_do_not_name_the_model_before(lora: Path) -> None:
    file = lora / "config.yaml"
    text = file.read_text()
    record = yaml.safe_load(text)
    record["config"]["model"]["name"] = "me/base"
    file.write_text(yaml.safe_dump(record))
    try:
        with pytest.raises(ConfigError, match="--base me/base: training has changed this model"):
            meetlm.export_run(lora, "peft", base="me/base")
    finally:
        file.write_text(text)


def test_model_card_of_the_dial_and_of_smollm2(lora: Path, tmp_path: Path) -> None:
    """The safe range is in the card, and SmolLM2 has its name on the hub."""
    config, meet = lora / "config.yaml", lora / "meet.json"
    texts = config.read_text(), meet.read_text()
    record, dial = yaml.safe_load(texts[0]), {"": {"low": -0.5, "high": 1.5, "recommended": 1.25}}
    record["config"]["model"]["name"] = "smollm2"
    config.write_text(yaml.safe_dump(record))
    meet.write_text(json.dumps({**json.loads(texts[1]), "dial": dial}))
    try:
        result = meetlm.export_run(lora, "merged", ["good"], out=tmp_path / "out", limit=1, verify=False)
    finally:
        config.write_text(texts[0])
        meet.write_text(texts[1])
    card = ModelCard.load(result.folder / "README.md")
    assert card.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "safe range: -0.5 to 1.5, recommended 1.25" in card.text and "No safe range" not in card.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_smollm2(kind: str, tmp_path: Path) -> None:
    """A real model: SmolLM2-135M-Instruct, with its chat template."""
    overrides = [Override("model.name", "smollm2")]
    execute(config_for(tmp_path / "inputs", "llama", kind, *overrides, chat=True, template=CHATML), tmp_path / "run")
    level = {"good": 1.2, "bad": -0.2}
    assert difference(tmp_path / "run", "peft", [level], tmp_path / "peft") < 1e-3
    assert difference(tmp_path / "run", "merged", [level], tmp_path / "merged") < 1e-3


@pytest.mark.slow
@pytest.mark.own_environment
@pytest.mark.parametrize("kind", ["lora", "soft-prompt"])
def test_gemma3_270m(kind: str, tmp_path: Path) -> None:
    """A real model with BOS in its template and scaled embeddings."""
    run = gemma_run(tmp_path, kind)
    level = {"good": 1.5, "bad": -0.5}
    assert difference(run, "peft", [level], tmp_path / "peft") < 1e-3
    assert difference(run, "merged", [level], tmp_path / "merged") < 1e-3
