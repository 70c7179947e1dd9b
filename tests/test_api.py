"""The public Python API, and the commands that type prompts: generate --prompt and chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

import meetlm
from meetlm.cli import main
from meetlm.config.errors import ConfigError, RunError
from meetlm.generation.settings import Sampling
from meetlm.recipes.config import RunConfig
from reporters import RecordingReporter
from run_folders import config_for, finished
from tiny import CHATML

PROMPTS = ["What is rice?", "How is water?"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("lora"), "llama", "lora")


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    config = config_for(folder, "qwen2", "lora", chat=True, template=CHATML)
    return meetlm.train(config, out=folder / "run")


def meet(*args: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args], input=text)


def test_train_takes_a_file_and_settings(tmp_path: Path) -> None:
    config_for(tmp_path, "llama", "lora")
    reporter = RecordingReporter()
    overrides = {"seed": 3, "stages.step1.epochs": 2}
    folder = meetlm.train(tmp_path / "config.yaml", out=tmp_path / "run", reporter=reporter, **overrides)
    assert folder == tmp_path / "run"
    config = yaml.safe_load((folder / "config.yaml").read_text())["config"]
    assert (config["seed"], config["stages"][0]["epochs"]) == (3, 2)
    assert any(message.startswith("step1: 6 steps") for message in reporter.messages)
    with pytest.raises(RunError, match="a run of another configuration"):
        meetlm.train(tmp_path / "config.yaml", out=folder)
    with pytest.raises(ConfigError, match="did you mean 'hh-meet-lora'"):
        meetlm.train("hh-met-lora")
    with pytest.raises(ConfigError, match="^--batch.pears: unknown key"):
        meetlm.train("hh-meet-lora", batch={"pears": 3})


def test_evaluate_compares_files_and_runs(tmp_path: Path, run: Path) -> None:
    for name, reply in (("a", "rice is good"), ("b", "no")):
        rows = [{"prompt": prompt, "completion": f"{reply} {n}"} for n, prompt in enumerate(PROMPTS * 3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    data = tmp_path / "test.jsonl"
    pairs = [{"prompt": prompt, "chosen": "rice is good", "rejected": "no"} for prompt in PROMPTS]
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    places = {name: tmp_path / f"{name}.jsonl" for name in "ab"}
    evaluation = meetlm.evaluate(places, "b", data=data, out=tmp_path / "out")
    (comparison,) = evaluation.comparisons
    assert (comparison.system, comparison.rates.win.value) == ("a", 1.0)
    assert (tmp_path / "out" / "report.html").is_file()
    again = meetlm.evaluate([f"a={places['a']}", places["b"]], "b", data={"eval_file": str(data)}, out=tmp_path / "out")
    assert again.comparisons == evaluation.comparisons
    with pytest.raises(ConfigError, match="top_p: expected 1 or less"):
        meetlm.evaluate(places, "b", data=data, top_p=2)
    with pytest.raises(RunError, match="Write them: meet generate .*--level bad"):
        meetlm.evaluate({"run": run, "b": places["b"]}, "b", data=data, level=0)


def test_prompts_may_be_any_iterable_and_levels_numbers(run: Path) -> None:
    aligned = meetlm.load(run)

    def prompts() -> Iterator[str]:
        yield from PROMPTS

    by_number = aligned.generate(prompts(), level=1, max_new_tokens=4)
    assert by_number == aligned.generate(PROMPTS, level="good", max_new_tokens=4)
    mixed = aligned.generate(PROMPTS, level=1.5, max_new_tokens=4)
    assert mixed == aligned.generate(PROMPTS, level={"good": 1.5, "bad": -0.5}, max_new_tokens=4)
    (completion, _) = aligned.complete(PROMPTS, 1.5, Sampling(max_new_tokens=2))
    assert completion.level == {"bad": -0.5, "good": 1.5}
    with pytest.raises(ConfigError, match="load: device: expected 'auto', 'cpu' or 'cuda', got 'cuda:0'"):
        meetlm.load(run, device="cuda:0")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_streamed_pieces_are_the_completion(run: Path, chat_run: Path, temperature: float) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=temperature)
    for folder in (run, chat_run):
        aligned = meetlm.load(folder)
        pieces = list(aligned.stream(PROMPTS[0], 1.2, sampling, seed=4))
        (whole,) = aligned.complete(PROMPTS[:1], 1.2, sampling, seed=4)
        assert "".join(pieces) == whole.completion
        assert len(pieces) > 1


def test_generate_prints_prompts_with_replies(run: Path) -> None:
    options = ["--max-new-tokens", 4, "--level", "0.7", "--quiet"]
    replies = meetlm.load(run).generate(["Hi", "Ho"], 0.7, max_new_tokens=4)
    result = meet("generate", run, "--prompt", "Hi", "--prompt", "-", *options, text="Ho\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"> Hi\n{replies[0]}\n\n> Ho\n{replies[1]}\n\n"
    result = meet("generate", run, "--prompt", "Hi", "--json", *options)
    (row,) = json.loads(result.stdout)
    assert (row["prompt"], row["completion"], row["level"]) == ("Hi", replies[0], {"bad": 0.3, "good": 0.7})
    for args in (["--limit", 2], ["--data.path", "x"], ["--out", "x"]):
        assert meet("generate", run, "--prompt", "Hi", *args).exit_code == 2
    assert "the prompt is empty" in meet("generate", run, "--prompt", "-", text="\n").output


def test_chat_changes_levels_and_remembers(chat_run: Path) -> None:
    lines = [
        "Hi",
        "/level bad",
        "Hi",
        "/level 9=x",
        "/level",
        "/nonsense",
        "/reset",
        "/level 1.5",
        "Hi",
        "/quit",
        "never",
    ]
    result = meet("chat", chat_run, "--max-new-tokens", 3, text="\n".join(lines))
    assert result.exit_code == 0, result.output
    aligned = meetlm.load(chat_run)

    def reply(level: object, *texts: str) -> str:
        turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        (text,) = aligned.generate([turns], level, max_new_tokens=3)  # type: ignore[arg-type]
        return text

    first = reply("good", "Hi")
    expected = [first, reply("bad", "Hi", first, "Hi"), reply(1.5, "Hi")]
    assert result.stdout.split("\n")[:3] == expected
    assert "error: level '9' is unknown" in result.stderr and "unknown command" in result.stderr
    assert "[good=1.5,bad=-0.5]" in result.stderr or "[bad=-0.5,good=1.5]" in result.stderr


def test_a_run_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    config_for(tmp_path, "llama", "lora")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").touch()
    result = meet("train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "notes")
    assert result.exit_code == 1
    assert f"--out {tmp_path / 'notes'} holds other files (thesis.tex); choose another folder" in result.stderr


def test_an_interrupted_command_prints_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config_for(tmp_path, "llama", "lora")

    def interrupt(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("meetlm.run.train.execute", interrupt)
    result = meet("train", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert (
        "interrupted: finished work is saved, training up to its last checkpoint. Run the same command again"
        in result.stderr
    )


def test_overrides_cannot_be_combined_with_a_configuration(tmp_path: Path) -> None:
    config: RunConfig = config_for(tmp_path, "llama", "lora")
    with pytest.raises(TypeError, match="overrides cannot be combined with a RunConfig"):
        meetlm.train(config, seed=3)
