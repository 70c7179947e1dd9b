"""``meet dial``: a run's levels are swept, scored, stored and reported; `meet generate` respects the safe range."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from html_page import Page
from meetlm.cli import main
from meetlm.config.errors import ConfigError
from meetlm.data.levels import Attribute, LevelSpace
from meetlm.generation.settings import Sampling
from meetlm.run import dial as module
from meetlm.run.aligned import Aligned, load
from meetlm.run.execute import execute
from meetlm.run.folder import read_meet, write_dial
from meetlm.run.levels import Guidance, calibrated_level, dial_warning, level_text, resolve_level, scales_of
from run_folders import config_for, finished, local_model
from tiny import tiny_policy


def meet(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dial")
    execute(config_for(folder, "llama", "lora"), folder / "run")
    return folder / "run"


@pytest.fixture
def scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"dial_scorers_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(
        "def vowels(prompt, completion):\n"
        '    """Vowels of the reply."""\n'
        '    return sum(letter in "aeiou" for letter in completion)\n'
    )
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    prompts = [f"\n\nHuman: What is rice? {number}\n\nAssistant:" for number in range(10)]
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return file


def test_a_dial_is_measured_reported_and_respected(run: Path, scorers: str, data: Path, tmp_path: Path) -> None:
    few = ["--grid", "0,1,2", "--max-new-tokens", 4, "--nll-increase", 100, "--cut-increase", 1]
    few += ["--repetition-increase", 1, "--data.path", data]
    args = ["dial", run, "--scorer", f"{scorers}:vowels", *few, "--quiet"]
    result = meet(*args, "--picture", tmp_path / "dial.svg")
    assert result.exit_code == 0, result.output
    assert "safe range 0 to 2, recommended" in result.stdout
    limits = read_meet(run).dial[""]
    assert (limits["low"], limits["high"], limits["score"]) == (0, 2, f"{scorers}:vowels")
    assert "<svg" in (tmp_path / "dial.svg").read_text()
    page = Page((run / "dial" / "dial.html").read_text(encoding="utf-8"))
    alts = [image["alt"] for image in page.all("img")]
    assert [alt.split(" of ")[0] for alt in alts] == [f"{scorers}:vowels", "NLL", "repetition", "cut", "words"]
    assert "Replies to one prompt by the setting" in (run / "dial" / "dial.md").read_text(encoding="utf-8")
    # Everything is stored: a second run samples and loads nothing, and gives the same.
    stored = {file: file.read_text() for file in (run / "dial").rglob("*.jsonl")}
    assert len(stored) == 3 + 1
    again = meet(*args, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["dial"][""] == limits
    assert stored == {file: file.read_text() for file in (run / "dial").rglob("*.jsonl")}
    assert result.stdout.splitlines()[-1] == f"default level of {run}: {level_text(read_meet(run).default_level)}"
    generate = ["generate", run, "--prompt", "Hello", "--max-new-tokens", 2]
    assert "3 is outside the safe range 0 to 2 of `meet dial`" in meet(*generate, "--level", 3).stderr
    assert "safe range" not in meet(*generate, "--level", 2).stderr


def test_an_interrupted_dial_continues(
    run: Path, scorers: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sampled = Aligned.iter_completions, []

    def counted(self: Aligned, *args: Any, **more: Any) -> Any:
        for item in original(self, *args, **more):
            if len(sampled) == 12 and not resumed:
                raise KeyboardInterrupt
            sampled.append(item)
            yield item

    monkeypatch.setattr(Aligned, "iter_completions", counted)
    resumed: list[bool] = []
    options = ["--grid", "0,1", "--max-new-tokens", 3, "--out", tmp_path / "out", "--data.path", data, "--quiet"]
    command = ["dial", run, "--scorer", f"{scorers}:vowels", *options]
    assert meet(*command).exit_code == 130
    resumed.append(True)
    assert meet(*command).exit_code == 0
    assert len(sampled) == 2 * 10  # nothing is sampled twice


def test_two_attributes_have_a_dial_each_and_a_front(scorers: str, data: Path, tmp_path: Path) -> None:
    space = LevelSpace((Attribute("tone", ("casual", "formal")), Attribute("length", ("brief", "detailed"))))
    policy = tiny_policy("llama", "lora", dtype=torch.float32, levels=space, move=0.1)
    run = finished(tmp_path, "llama", "lora", policy=policy)
    model = {"name": str(local_model(tmp_path / "base", "llama")), "device": "cpu"}
    (run / "config.yaml").write_text(yaml.safe_dump({"config": {"model": model, "data": {"source": "hh"}}}))
    args = ["--scorer", f"tone={scorers}:vowels", "--scorer", "length=words", "--grid", "0,1,1.5", "--data.path", data]
    limits = ["--nll-increase", 100, "--cut-increase", 1, "--repetition-increase", 1, "--max-new-tokens", 3]
    process = meet("dial", run, *args, *limits, "--json", "--quiet")
    assert process.exit_code == 0, process.output
    result = json.loads(process.stdout)
    assert list(result["dial"]) == ["tone", "length"] == list(read_meet(run).dial)
    assert len(result["pareto"]["settings"]) == 3 * 3 and result["pareto"]["hypervolume"]["value"] >= 0
    text = (run / "dial" / "dial.md").read_text(encoding="utf-8")
    assert "## Dial of tone" in text and "## Both dials" in text and "Hypervolume" in text
    (run / "config.yaml").unlink()
    assert (
        "has no config.yaml, so its data and settings are unknown"
        in meet("dial", run, *args, *limits, "--seed", 1).stderr
    )


def test_guidance_has_a_dial_of_its_own(run: Path, scorers: str, data: Path, tmp_path: Path) -> None:
    few = ["--nll-increase", 100, "--cut-increase", 1, "--repetition-increase", 1, "--max-new-tokens", 3]
    args = ["--scorer", f"{scorers}:vowels", "--by", "guidance", "--grid", "0,1", "--data.path", data]
    result = meet("dial", run, *args, *few, "--out", tmp_path / "out", "--quiet")
    assert result.exit_code == 0, result.output
    limits = read_meet(run).dial["guidance"]
    assert (limits["low"], limits["high"]) == (0, 1)
    assert "its strength at the best level" in (tmp_path / "out" / "dial.md").read_text(encoding="utf-8")
    names = sorted(file.name for file in (tmp_path / "out" / "completions").iterdir())
    assert names == ["good-guidance1-seed0.jsonl", "good-seed0.jsonl"]
    generate = ["generate", run, "--prompt", "Hello", "--max-new-tokens", 2, "--level", "good", "--guidance"]
    assert "guidance 2 is outside the safe range 0 to 1" in meet(*generate, 2).stderr
    assert "safe range" not in meet(*generate, 1).stderr


def test_settings_below_the_worst_level_are_measured(run: Path, data: Path, tmp_path: Path) -> None:
    few = ["--max-new-tokens", 3, "--data.path", data, "--out", tmp_path, "--nll-increase", 100, "--cut-increase", 1]
    result = meet("dial", run, "--scorer", "words", "--grid", "-0.5,0,1", *few, "--quiet", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["dial"][""]["low"] == -0.5
    assert "--grid" in meet("dial", run, "--scorer", "words", "--grid", "0,inf").stderr


def test_the_recommended_level_is_the_default_of_requests_that_state_none(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    limits = {"low": 0, "high": 2, "recommended": 1.5, "improves": True}
    mix = {"bad": -0.5, "good": 1.5}
    assert write_dial(folder, {"": {**limits, "improves": False}}).default_level == "good"
    write_dial(folder, {"": limits})
    aligned = load(folder)
    sampling = Sampling(max_new_tokens=4)
    (record,) = aligned.complete(["Hello"], None, sampling)
    assert record == aligned.complete(["Hello"], 1.5, sampling)[0] and record.level == mix
    assert "".join(aligned.stream("Hello", sampling=sampling)) == record.completion
    (guided,) = aligned.complete(["Hello"], None, sampling, guidance=Guidance(1.0))
    assert guided.level == "good", "guidance is calibrated at the best level"
    message = "level bad=-0.5,good=1.5: recommended by `meet dial`, the default of this run"
    generate = ["generate", folder, "--max-new-tokens", 4]
    assert message in meet(*generate, "--limit", 1).stderr
    assert message in meet(*generate, "--prompt", "Hello").stderr
    assert message not in meet(*generate, "--prompt", "Hello", "--level", "good").stderr
    chat = CliRunner().invoke(main, ["chat", str(folder)], input="/level 3\n/level\n")
    assert message in chat.stderr and "3 is outside the safe range 0 to 2" in chat.stderr
    assert (folder / "completions" / "good1.5_bad-0.5-t0-p1-n4-seed0-first1.jsonl").is_file()


def test_a_default_level_joins_the_recommended_settings_of_attributes() -> None:
    levels = LevelSpace(
        (
            Attribute("tone", ("casual", "formal")),
            Attribute("length", ("brief", "detailed")),
            Attribute("topic", ("tea", "rice"), is_ordered=False),
        )
    )
    better = {"recommended": 0.5, "improves": True}
    default = {"tone=formal": 1.0, "length=detailed": 1.0}
    assert calibrated_level(levels, {}) == default
    assert calibrated_level(levels, {"length": {"recommended": 0.5, "improves": False}}) == default
    assert calibrated_level(levels, {"length": better, "guidance of tone": better}) == {
        "tone=formal": 1.0,
        "length=brief": 0.5,
        "length=detailed": 0.5,
    }


def test_levels_without_an_order_have_no_dial(tmp_path: Path) -> None:
    unordered = Attribute("tone", ("casual", "formal"), is_ordered=False)
    both = LevelSpace((unordered, Attribute("length", ("brief", "detailed"))))
    reason = r"the levels of tone \(casual, formal\) have no order; to order them, train with "
    reason += "--data.attribute_levels.tone.names and their names from worst to best"
    with pytest.raises(ConfigError, match=reason):
        module._assign(["tone=words"], both, None, tmp_path)
    assert list(module._assign(["words"], both, None, tmp_path)[0]) == ["length"]
    alone = LevelSpace((Attribute("", ("red", "blue"), is_ordered=False),))
    with pytest.raises(ConfigError, match=r"the levels \(red, blue\) have no order; .* --data.levels.names"):
        module._assign(["words"], alone, None, tmp_path)
    with pytest.raises(ConfigError, match=f"level tone=0.7: expected the name of a level, since {reason}"):
        resolve_level(both, {"tone": 0.7})


def test_wrong_arguments_are_refused(run: Path) -> None:
    assert (
        "no score to calibrate: pass --scorer MODULE:FUNCTION, --scorer words or --reward MODEL"
        in meet("dial", run).stderr
    )
    assert "2 settings on 6 prompts" in meet("dial", run, "--scorer", "words", "--grid", "0,1").stderr
    assert "no attribute 'tone'" in meet("dial", run, "--scorer", "tone=words").stderr
    assert "--reward.input requires --reward" in meet("dial", run, "--reward.input", "text").stderr
    assert "expected a name that ends in .svg or .png" in meet("dial", run, "--picture", "dial.gif").stderr


def test_a_control_that_cannot_extrapolate_has_a_setting_per_level() -> None:
    class Fixed:
        def weights(self, level: object) -> None:
            raise ConfigError("one level at a time, not a mix")

    fixed: Any = Fixed()
    assert module._default_grid(fixed, ["q0", "q1", "q2", "q3", "q4"]) == [0, 0.25, 0.5, 0.75, 1]
    fixed.weights = lambda level: level
    assert module._default_grid(fixed, ["bad", "good"])[-1] == 3


def test_settings_of_two_attributes_are_one_level() -> None:
    levels = LevelSpace((Attribute("tone", ("casual", "formal")), Attribute("length", ("brief", "detailed"))))
    attributes = scales_of(levels)
    assert module._level(attributes, {"tone": 1}) == "tone=formal"
    assert module._level(attributes, {"tone": 1.5, "length": 0}) == {
        "tone=formal": 1.5,
        "tone=casual": -0.5,
        "length=brief": 1.0,
    }
    with pytest.raises(ConfigError, match=r"no score .* pass --scorer tone=MODULE:FUNCTION; attributes .*tone, length"):
        module._assign([], levels, None, Path())
    by_attribute, others = module._assign(["length=words"], levels, None, Path())
    assert list(by_attribute) == ["length"] and others == []


def test_the_warning_names_the_attribute_and_the_range(tmp_path: Path) -> None:
    levels = LevelSpace((Attribute("tone", ("casual", "formal")), Attribute("length", ("brief", "detailed"))))
    dial = {"tone": {"low": 0, "high": 1.5, "recommended": 1.25}}
    assert dial_warning(levels, dial, "tone=formal") is None
    assert dial_warning(levels, dial, {"length=detailed": 9.0}) is None
    warning = dial_warning(levels, dial, {"tone=formal": 2.0, "tone=casual": -1.0})
    assert warning and warning.startswith("tone 2 is outside the safe range 0 to 1.5") and "1.25" in warning


def test_other_attributes_keep_their_range(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "meet.json", tmp_path)
    write_dial(tmp_path, {"a": {"low": 0}})
    write_dial(tmp_path, {"b": {"low": 1}})
    dial = json.loads((tmp_path / "meet.json").read_text())["dial"]
    assert dial["a"] == {"low": 0} and dial["b"] == {"low": 1}
