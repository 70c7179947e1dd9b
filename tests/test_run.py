"""A run from its configuration to its folder and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

import meetlm
from combinations import each_value
from meetlm.cli import main
from meetlm.cli.arguments import held_out_data
from meetlm.config.errors import ConfigError, DataError, RunError
from meetlm.config.overrides import Override
from meetlm.data.example import Prompt
from meetlm.data.settings import DataSettings
from meetlm.generation.decoding import Branch
from meetlm.generation.settings import Sampling
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.policy import Policy
from meetlm.run.completions import completions_file, write_completions
from meetlm.run.execute import execute
from meetlm.run.levels import Guidance
from reporters import RecordingReporter
from run_folders import config_for, finished, trained, write_pairs
from test_resume import Killed, kill_after
from tiny import ARCHITECTURES, CHATML, CONTROLS, first_logits, tiny_lm, tiny_policy, tiny_tokenizer

TEXTS = ["\n\nHuman: What is rice?\n\nAssistant:", "\n\nHuman: Hi\n\nAssistant:", "Water"]


def logits(policy: Policy, prompt_format: Any) -> Tensor:
    branches = []
    for level in (0, 1):
        weights = (1.0, 0.0) if level == 0 else (0.0, 1.0)
        for text in TEXTS:
            ids = (*policy.control.slots[level], *prompt_format.prompt_ids(Prompt(text)))
            branches.append(Branch(tuple(ids), weights))
    return first_logits(policy, branches)


@each_value(architecture=ARCHITECTURES, kind=tuple(CONTROLS), placement=("first", "before_response"))
def test_saved_and_loaded(architecture: str, kind: str, placement: str, tmp_path: Path) -> None:
    policy = trained(architecture, kind, tmp_path / "stage", placement=placement)
    aligned = meetlm.load(finished(tmp_path, architecture, kind, policy=policy))
    assert torch.equal(logits(policy, aligned.format), logits(aligned.policy, aligned.format))
    for name, parameter in policy.named_parameters():
        assert torch.equal(parameter, aligned.policy.get_parameter(name)), name
    assert tuple(aligned.levels) == ("bad", "good")
    assert aligned.default_level == "good"
    replies = aligned.generate(TEXTS, level="bad", max_new_tokens=5)
    assert len(replies) == 3
    assert aligned.generate(TEXTS, max_new_tokens=5) == aligned.generate(TEXTS, "good", max_new_tokens=5)
    if kind == "none":
        return
    first, second = logits(aligned.policy, aligned.format).split(len(TEXTS))
    assert float((first - second).abs().amax(-1).min()) > 1e-2


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("llama", "lora"), ("gpt-neo", "lora"), ("gptj", "soft-prompt"), ("gpt2", "text"), ("gemma3", "none")],
)
def test_execute(architecture: str, kind: str, tmp_path: Path) -> None:
    config, reporter = config_for(tmp_path, architecture, kind), RecordingReporter()
    execute(config, tmp_path / "run", reporter=reporter)
    said = reporter.messages
    run = tmp_path / "run"
    record = yaml.safe_load((run / "config.yaml").read_text())
    assert record["config"] == json.loads(config.model_dump_json())
    assert {"meetlm", "torch", "transformers"} <= set(record["versions"])
    assert len(record["data_sha256"]) == 64
    stages = [stage.name for stage in config.stages]
    accuracy = json.loads((run / "preference.json").read_text())
    assert list(accuracy) == ["before training", *(f"after {name}" for name in stages)]
    for name in stages:
        assert len((run / name / "metrics.jsonl").read_text().splitlines()) == 3
    assert any("12 of 12 rows kept" in line for line in said)
    aligned = meetlm.load(run)
    assert aligned.meet.lm_sha256 == sha256_of(aligned.policy.lm)
    assert aligned.format.spec.stop == ("\n\nHuman:",)
    assert aligned.policy.layout == ("padded" if architecture == "gptj" else "packed")
    start = sha256_of(tiny_lm(architecture, dtype=torch.float32))
    results = [json.loads((run / name / "stage.json").read_text())["lm_sha256"] for name in stages]
    assert [sha == start for sha in results] == [name == "step1" for name in stages]
    assert results[-1] == aligned.meet.lm_sha256
    if kind == "lora":
        assert accuracy["before training"]["by_sum"]["value"] == 0.5
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    execute(config, run, reporter=reporter)
    assert reporter.messages[-1] == f"{run} contains this run already, finished"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_execute_on_conversations(tmp_path: Path) -> None:
    config = config_for(tmp_path, "qwen2", "lora", chat=True, template=CHATML)
    execute(config, tmp_path / "run")
    aligned = meetlm.load(tmp_path / "run")
    assert aligned.meet.conversational
    assert aligned.meet.format.preamble == "<|im_start|>system\nYou are of use.<|im_end|>\n"
    as_text = aligned.generate(["What is rice?"], max_new_tokens=5)
    assert as_text == aligned.generate([[{"role": "user", "content": "What is rice?"}]], max_new_tokens=5)


@pytest.mark.parametrize("killed_in", ["step1", "step2"])
def test_a_killed_run_continues(killed_in: str, tmp_path: Path) -> None:
    config = config_for(tmp_path, "llama", "lora", "batch.save_steps=1")
    execute(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        if killed_in == "step1":
            kill_after(patch, 2)
        else:
            kill_in_second(patch)
        execute(config, tmp_path / "parts")
    with pytest.raises(RunError, match="is an unfinished run"):
        meetlm.load(tmp_path / "parts")
    execute(config, tmp_path / "parts")
    for name in ("control.safetensors", "model/model.safetensors"):
        first, second = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    accuracies = [json.loads((tmp_path / run / "preference.json").read_text()) for run in ("whole", "parts")]
    assert accuracies[0] == accuracies[1]


def test_a_killed_run_may_continue_in_other_portions(tmp_path: Path) -> None:
    config = config_for(tmp_path, "llama", "lora", "batch.save_steps=1")
    execute(config, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 2)
        execute(config, tmp_path / "parts")
    overrides = ("batch.save_steps=2", "batch.micro_pairs=1", "model.gradient_checkpointing=true")
    execute(config_for(tmp_path, "llama", "lora", *overrides), tmp_path / "parts")
    first, second = (load_file(tmp_path / run / "control.safetensors") for run in ("whole", "parts"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


def kill_in_second(patch: pytest.MonkeyPatch) -> None:
    from meetlm.run import execute as module

    right = module.run_stage

    def run_stage(policy: Policy, items: Any, stage: Any, *rest: Any, **named: Any) -> Any:
        if stage.name == "step2":
            kill_after(patch, 1)
        return right(policy, items, stage, *rest, **named)

    patch.setattr(module, "run_stage", run_stage)


def test_a_run_of_other_settings_or_data_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, "llama", "lora", "batch.save_steps=1")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_after(patch, 1)
        execute(config, tmp_path / "run")
    other = config.model_copy(update={"seed": 5})
    with pytest.raises(RunError, match="a run of another configuration.*\n  seed was 0, is now 5"):
        execute(other, tmp_path / "run")
    write_pairs(tmp_path / "train.jsonl", 13)
    with pytest.raises(RunError, match="a run of other data.*\n.*data_sha256 was"):
        execute(config, tmp_path / "run")


def test_a_model_that_has_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    config = config_for(tmp_path, "llama", "lora", "batch.save_steps=1")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_in_second(patch)
        execute(config, tmp_path / "run")
    tiny_lm("llama", seed=5, dtype=torch.float32).save_pretrained(tmp_path / "lm")
    with pytest.raises(RunError, match="the run started from another language model; .*lm' has changed"):
        execute(config, tmp_path / "run")


def test_interrupted_completions_resume_after_the_written_rows(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "llama", "lora"), tmp_path / "run")
    sampling = Sampling(max_new_tokens=4, temperature=0.7, top_p=0.9)

    def write(out: Path, seed: int = 3, **more: Any) -> list[str]:
        path, count = write_completions(
            tmp_path / "run", None, None, sampling, seed=seed, batch_size=2, out=out, **more
        )
        assert count == 6 and list(tmp_path.glob("*.unfinished")) == []
        return path.read_text().splitlines()

    def stop_after(number: int) -> RecordingReporter:
        def stop(count: int) -> None:
            if sum(reporter.counts) >= number:
                raise Killed

        reporter = RecordingReporter(stop)
        return reporter

    whole = write(tmp_path / "whole.jsonl")
    other = write(tmp_path / "other.jsonl", seed=4)
    parts = tmp_path / "parts.jsonl"
    with pytest.raises(Killed):
        write(parts, reporter=stop_after(4))
    assert not parts.exists()
    unfinished = tmp_path / "parts.jsonl.unfinished"
    lines = unfinished.read_text().splitlines()
    assert len(lines) == 1 + 4
    unfinished.write_text("\n".join(lines)[:-20])  # a kill in the middle of a line
    reporter = RecordingReporter()
    assert write(parts, reporter=reporter) == whole
    assert sum(reporter.counts) == 3
    assert reporter.messages[-1] == "resuming after 3 completions written by an interrupted call"
    with pytest.raises(Killed):
        write(parts, reporter=stop_after(2))
    reporter = RecordingReporter()
    assert write(parts, seed=4, reporter=reporter) == other, "completions of another seed are not used"
    assert reporter.messages == []


def test_completions_on_disk(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "llama", "lora"), tmp_path / "run")
    sampling = Sampling(max_new_tokens=4, temperature=0.7, top_p=0.9)
    path, count = write_completions(tmp_path / "run", None, {"good": 1.5, "bad": -0.5}, sampling, seed=3)
    assert path == tmp_path / "run" / "completions" / "good1.5_bad-0.5-t0.7-p0.9-n4-seed3.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert count == len(lines) == 6
    assert lines[0]["prompt"] == "\n\nHuman: What is rice? 0\n\nAssistant:"
    assert lines[0]["level"] == {"good": 1.5, "bad": -0.5}
    assert lines[0]["sampling"] == {"max_new_tokens": 4, "temperature": 0.7, "top_p": 0.9, "stop": ["\n\nHuman:"]}
    assert (lines[0]["seed"], lines[0]["run"].split("-")[0]) == (3, "run")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "Hi"}\n{"prompt": "Ho"}\n{"prompt": "Hi"}\n')
    data = DataSettings(source="pairs", eval_file=str(file))
    path, count = write_completions(tmp_path / "run", data, None, sampling, out=tmp_path / "out.jsonl")
    assert (path, count) == (tmp_path / "out.jsonl", 2)
    assert json.loads(path.read_text().splitlines()[0])["level"] == "good"


def test_a_file_of_prompts_is_read_in_its_format(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "qwen2", "none", chat=True, template=CHATML), tmp_path / "run")
    run, sampling, reporter = tmp_path / "run", Sampling(max_new_tokens=2), RecordingReporter()

    def prompts_of(file: Path) -> list[Any]:
        data = held_out_data([Override("data.path", str(file))])
        path, _ = write_completions(run, data, None, sampling, out=tmp_path / "o.jsonl", reporter=reporter)
        return [json.loads(line)["prompt"] for line in path.read_text().splitlines()]

    assert prompts_of(tmp_path / "test.jsonl")[0] == [{"role": "user", "content": "What is rice? 0"}]
    assert prompts_of(write_pairs(tmp_path / "hh.jsonl", 3))[0] == "\n\nHuman: What is rice? 0\n\nAssistant:"
    post = {"id": "a", "post": "Rice.", "title": "Hi", "subreddit": "cook"}
    row = {"info": post, "choice": 0, "summaries": [{"text": " a"}, {"text": " b"}]}
    (tmp_path / "s.jsonl").write_text(json.dumps(row))
    assert "TL;DR" in prompts_of(tmp_path / "s.jsonl")[0]
    assert reporter.totals == [6, 3, 1]
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": [{"role": "user"}]}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2: field 'prompt\[0\]\.content': is missing"):
        prompts_of(tmp_path / "bad.jsonl")


def test_a_bare_prompt_is_put_as_the_runs_data_put_prompts(tmp_path: Path) -> None:
    policy = trained("llama", "none", tmp_path / "stage")
    hh = meetlm.load(finished(tmp_path / "hh", "llama", "none", policy=policy))
    plain = meetlm.load(finished(tmp_path / "plain", "llama", "none", policy=policy, source="pairs"))
    transcript = "\n\nHuman: What is rice?\n\nAssistant:"
    expected = plain.generate([transcript], max_new_tokens=6)
    assert hh.generate(["What is rice?"], max_new_tokens=6) == expected
    assert hh.generate([transcript], max_new_tokens=6) == expected
    assert plain.generate(["What is rice?"], max_new_tokens=6) != expected
    (record,) = hh.complete([" What is rice?\n"], None, Sampling(max_new_tokens=6))
    assert (record.prompt, record.completion) == (" What is rice?\n", expected[0])


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (
            [{"role": "user", "text": "Hi"}],
            {},
            r"prompts:2: field 'prompt\[0\].content': is missing; expected a string",
        ),
        ([{"content": "Hi"}], {}, r"field 'prompt\[0\].role': is missing"),
        (["Hi"], {}, r"field 'prompt\[0\]': is a string; expected an object with role and content"),
        ([], {}, "is an empty list"),
        (None, {}, "is null; expected text, or a list of messages"),
        ("Hi", {"top_p": 2}, "generate: top_p: expected 1 or less, got 2"),
        ("Hi", {"level": {"good": float("nan")}}, "level 'good' has the weight nan; expected a finite number"),
    ],
)
def test_arguments_that_generate_refuses(prompt: Any, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    aligned = meetlm.load(finished(tmp_path, "llama", "lora", policy=tiny_policy("llama", "lora", dtype=torch.float32)))
    with pytest.raises(ConfigError, match=message):
        aligned.generate(["Hi", prompt], **settings)


def test_a_prompt_is_the_same_in_any_batch(tmp_path: Path) -> None:
    aligned = meetlm.load(finished(tmp_path, "llama", "lora"))
    texts = [f"{text} {i}" for i in range(3) for text in TEXTS]
    first, second = (aligned.generate(texts, max_new_tokens=6, temperature=1.0, batch_size=n) for n in (1, 4))
    assert first == second


def test_levels(tmp_path: Path) -> None:
    aligned = meetlm.load(finished(tmp_path, "llama", "lora"))
    assert aligned.weights("bad") == (1.0, 0.0)
    assert aligned.weights({"good": 1.5, "bad": -0.5}) == (-0.5, 1.5)
    with pytest.raises(ConfigError, match="level 'god' is unknown; did you mean 'good'"):
        aligned.generate(["Hi"], level="god")
    with pytest.raises(ConfigError, match="expected a list"):
        aligned.generate("Hi")
    same = aligned.generate(TEXTS, {"good": 1.0, "bad": 0.0}, max_new_tokens=6)
    assert same == aligned.generate(TEXTS, "good", max_new_tokens=6)


def test_text_cannot_mix_levels(tmp_path: Path) -> None:
    aligned = meetlm.load(finished(tmp_path, "llama", "text"))
    assert aligned.weights({"good": 1}) == (0.0, 1.0)
    with pytest.raises(ConfigError, match="'text' takes one level at a time"):
        aligned.generate(["Hi"], {"good": 0.5, "bad": 0.5})


@pytest.mark.parametrize("kind", ["lora", "soft-prompt", "text"])
def test_guidance(kind: str, tmp_path: Path) -> None:
    """For every kind of control. Strength 0 is the plain level; by default the worst level is moved away from."""
    aligned = meetlm.load(finished(tmp_path, "llama", kind))
    plain = aligned.generate(TEXTS, "good", max_new_tokens=8)
    assert aligned.generate(TEXTS, "good", guidance=0.0, max_new_tokens=8) == plain
    guided = aligned.generate(TEXTS, "good", guidance=4.0, max_new_tokens=8)
    assert guided == aligned.generate(TEXTS, "good", guidance=4.0, against="bad", max_new_tokens=8)
    assert guided != plain
    (text,) = {"".join(aligned.stream(TEXTS[0], "good", Sampling(max_new_tokens=8), guidance=Guidance(4.0)))}
    assert text == guided[0]
    with pytest.raises(ConfigError, match="level bad is the level of the replies; choose another"):
        aligned.generate(TEXTS, "bad", guidance=1.0)
    with pytest.raises(ConfigError, match="against requires guidance"):
        aligned.generate(TEXTS, "good", against="bad")
    with pytest.raises(ConfigError, match="level 'god' is unknown"):
        aligned.generate(TEXTS, "good", guidance=1.0, against="god")


def test_guidance_from_the_command_line(tmp_path: Path) -> None:
    run = finished(tmp_path, "llama", "lora")
    options = ["--prompt", TEXTS[0], "--level", "good", "--guidance", "2", "--max-new-tokens", "3", "--json"]
    result = CliRunner().invoke(main, ["generate", str(run), *options])
    (row,) = json.loads(result.stdout)
    assert row["sampling"]["guidance"] == 2.0 and row["sampling"]["against"] == "bad"
    guidance = Guidance(2.0, "bad")
    file = completions_file(run, "good", Sampling(max_new_tokens=3), 0, guidance=guidance)
    assert file.name == "good-guidance2-against-bad-t0-p1-n3-seed0.jsonl"


def test_soft_prompts_take_weights_that_sum_to_1(tmp_path: Path) -> None:
    aligned = meetlm.load(finished(tmp_path, "llama", "soft-prompt"))
    assert aligned.weights({"good": 1.5, "bad": -0.5}) == (-0.5, 1.5)
    with pytest.raises(ConfigError, match=r"level good=2: the level weights sum to 2, .* use guidance instead"):
        aligned.generate(TEXTS, {"good": 2.0})


def test_load_refuses_inconsistent_files(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a folder that `meet train` wrote"):
        meetlm.load(tmp_path)
    run = finished(tmp_path, "llama", "lora")
    tiny_lm("llama", seed=9, dtype=torch.float32).save_pretrained(run / "model")
    tiny_tokenizer().save_pretrained(run / "model")
    with pytest.raises(RunError, match="not the language model"):
        meetlm.load(run)
