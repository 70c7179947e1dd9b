"""The whole way: completions in, a record and a report out; stopped and started again, mirrored, refused."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from judge_server import JudgeServer, longer, says
from meetlm.cli import main
from meetlm.config import versions as versions_module
from meetlm.config.versions import git_hash
from meetlm.data.example import Prompt
from meetlm.evaluation.record import Comparison, Evaluation
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_scorer import RewardScorer
from meetlm.evaluation.settings import RewardSettings
from meetlm.policy.fingerprint import sha256_of
from meetlm.run.execute import execute
from reward_models import folder_of
from run_folders import config_for
from test_completion_files import SAMPLING, written

PROMPTS = [f"\n\nHuman: What is rice? {number}\n\nAssistant:" for number in range(30)]
SAYS = ("rice is good food", "no", "I like rice and water and it is good", "", "rice rice rice", "water is not rice")


def systems(folder: Path, shifts: Sequence[int] = (0, 1, 3), **stated: Any) -> list[str]:
    """Return words for some systems whose replies differ."""
    args = []
    for name, shift in zip("abc", shifts, strict=False):
        rows = [
            {"prompt": prompt, "completion": SAYS[(number + shift * (1 + number // 6)) % len(SAYS)]}
            for number, prompt in enumerate(PROMPTS)
        ]
        args.append(f"{name}={written(folder / f'{name}.jsonl', rows, sampling=SAMPLING, **stated)}")
    return args


def held_out(folder: Path) -> Path:
    rows = [
        {"chosen": f"{prompt} rice is a good food to eat", "rejected": f"{prompt} no idea at all"} for prompt in PROMPTS
    ]
    return written(folder / "test.jsonl", rows)


def meet(*args: object) -> Any:
    return CliRunner().invoke(main, [str(arg) for arg in args])


def evaluated(folder: Path, *args: object) -> Evaluation:
    folder.mkdir(exist_ok=True)
    result = meet("evaluate", *args, "--data.path", held_out(folder), "--out", folder / "out", "--quiet")
    assert result.exit_code == 0, result.output
    return Evaluation.read(folder / "out" / "evaluation.json")


def by_name(evaluation: Evaluation, evaluator: str, system: str) -> Comparison:
    return next(
        comparison
        for comparison in evaluation.comparisons
        if (comparison.evaluator, comparison.system) == (evaluator, system)
    )


@pytest.fixture
def report() -> None:
    """Requested by tests that read the report."""


@pytest.fixture(autouse=True)
def no_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write reports only for tests that read them: the charts take most of the time."""
    if "report" not in request.fixturenames:
        monkeypatch.setattr("meetlm.run.evaluate.write_report", lambda evaluation, folder: [])


@pytest.mark.usefixtures("report")
def test_everything_in_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_scorers.py").write_text(
        'def brevity(prompt, completion):\n    """Minus the length."""\n    return -float(len(completion))\n'
    )
    monkeypatch.chdir(tmp_path)
    reward = folder_of("deberta", tmp_path / "rm")
    with JudgeServer(longer) as server:
        args = [*systems(tmp_path), "--baseline", "c", "--reward", reward, "--scorer", "own_scorers:brevity"]
        judge = [
            "--judge",
            "some-judge",
            "--judge.base_url",
            server.url,
            "--judge.key_env",
            "null",
            "--judge.num_prompts",
            20,
        ]
        evaluation = evaluated(tmp_path, *args, *judge)
        calls = len(server.received)
        again = evaluated(tmp_path, *args, *judge)
        assert len(server.received) == calls > 0  # a second run asks nothing
    assert again.comparisons == evaluation.comparisons and again.measures == evaluation.measures
    evaluators = {comparison.evaluator for comparison in evaluation.comparisons}
    assert evaluators == {"rouge-avg", "reward", "own_scorers:brevity", "judge"}
    assert {comparison.system for comparison in evaluation.comparisons} == {"a", "b"}
    judged = by_name(evaluation, "judge", "a")
    assert sum(outcome is not None for outcome in judged.outcomes) == judged.rates.num_cells == 20
    expected = {1: "win", 0: "tie", -1: "lose"}
    for name in ("a", "b"):
        outcomes = by_name(evaluation, "judge", name).outcomes
        for ours, theirs, outcome in zip(
            evaluation.completions[name], evaluation.completions["c"], outcomes, strict=True
        ):
            assert outcome in (None, expected[(len(ours) > len(theirs)) - (len(ours) < len(theirs))])
    assert evaluation.judge is not None and evaluation.judge.overall.is_conclusive
    empty = [problem for problem in evaluation.problems if "a: empty completions" in problem.description]
    assert [problem.count for problem in empty] == [evaluation.completions["a"].count("")]
    page, text = (tmp_path / "out" / name for name in ("report.html", "report.md"))
    assert "rice is good food" in page.read_text() and "| a " in text.read_text()
    assert evaluation.settings["protocol"]["max_new_tokens"] == 128
    assert len(evaluation.agreements) == 2 * 6


def test_a_system_compared_with_itself_only_ties(tmp_path: Path) -> None:
    reward = folder_of("llama with a template", tmp_path / "rm")
    evaluation = evaluated(tmp_path, *systems(tmp_path, (2, 2)), "--baseline", "b", "--reward", reward)
    for comparison in evaluation.comparisons:
        assert set(comparison.outcomes) <= {"tie", None}
        assert comparison.rates.tie.value == 1 and comparison.rates.delta.value == 0 and comparison.rates.sign_p == 1


def test_swapping_the_systems_mirrors_every_figure(tmp_path: Path) -> None:
    reward = folder_of("deberta", tmp_path / "rm")
    args = [*systems(tmp_path, (0, 1)), "--reward", reward]
    with JudgeServer(longer) as server:
        args += ["--judge", "j", "--judge.base_url", server.url, "--judge.key_env", "null"]
        first, other = (evaluated(tmp_path / f"{name} first", *args, "--baseline", name) for name in "ba")
    assert {mine.evaluator for mine in first.comparisons} == {"rouge-avg", "reward", "judge"}
    assert [(mine.values, mine.means) for mine in first.measures] == [
        (theirs.values, theirs.means) for theirs in other.measures
    ]
    kappas = [{(mine.evaluators, mine.kappa, mine.observed) for mine in which.agreements} for which in (first, other)]
    assert kappas[0] == kappas[1] and len(kappas[0]) == 3
    for mine in first.comparisons:
        theirs = by_name(other, mine.evaluator, "b")
        flipped = {"win": "lose", "lose": "win", "tie": "tie", None: None}
        assert [flipped[outcome] for outcome in mine.outcomes] == theirs.outcomes
        assert mine.rates.win == theirs.rates.lose and mine.rates.tie == theirs.rates.tie
        delta, mirrored = mine.rates.delta, theirs.rates.delta
        assert (delta.value, delta.low, delta.high) == (-mirrored.value, -mirrored.high, -mirrored.low)
        assert mine.rates.sign_p == theirs.rates.sign_p
        controlled, seen = mine.controlled_win, theirs.controlled_win
        assert (controlled is None) == (seen is None)
        if controlled is not None and seen is not None:
            assert controlled.value == pytest.approx(1 - seen.value, abs=1e-6)
            assert (controlled.low, controlled.high) == pytest.approx((1 - seen.high, 1 - seen.low), abs=1e-6)
    assert any(mine.controlled_win is not None for mine in first.comparisons)


def test_a_killed_evaluation_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward model dies after some rows: they are not scored again, and the numbers are those of one go."""
    reward = folder_of("deberta", tmp_path / "rm")
    whole, half = tmp_path / "whole", tmp_path / "half"
    args = [*systems(tmp_path), "--baseline", "c", "--reward", reward]
    whole.mkdir(), half.mkdir()
    expected = evaluated(whole, *args)
    scored: list[int] = []
    right = RewardModel.score

    def dies(self: RewardModel, rows: Any, **more: Any) -> Any:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(rows))
        return right(self, rows, **more)

    monkeypatch.setattr("meetlm.evaluation.reward_scorer.CHUNK", 1)
    monkeypatch.setattr(RewardModel, "score", dies)
    result = meet("evaluate", *args, "--data.path", held_out(half), "--out", half / "out", "--quiet")
    assert result.exit_code != 0 and not (half / "out" / "evaluation.json").exists()
    (score_file,) = (half / "out" / "scores").iterdir()
    with score_file.open("a") as lines:
        lines.write('{"scores": {"torn')  # a write cut short
    monkeypatch.setattr(RewardModel, "score", right)
    calls: list[int] = []
    monkeypatch.setattr(
        RewardModel, "score", lambda self, rows, **more: (calls.append(len(rows)), right(self, rows, **more))[1]
    )
    evaluation = evaluated(half, *args)
    model = RewardModel.load(RewardSettings(model=str(reward)))
    distinct = {row for name in "abc" for row in model.tokenize(list(map(Prompt, PROMPTS)), expected.completions[name])}
    assert sum(scored) + sum(calls) == len(distinct)
    assert [(comparison.evaluator, comparison.outcomes) for comparison in evaluation.comparisons] == [
        (comparison.evaluator, comparison.outcomes) for comparison in expected.comparisons
    ]
    assert evaluation.problems == expected.problems
    for mine, theirs in zip(evaluation.measures, expected.measures, strict=True):
        for system, values in mine.values.items():
            assert values == pytest.approx(theirs.values[system], abs=1e-5), (mine.name, system)


@pytest.mark.usefixtures("report")
def test_the_record_has_settings_and_versions(tmp_path: Path) -> None:
    """Versions, commit, and hashes of data and reward model, which change with what they are of; in both reports."""
    reward = folder_of("deberta", tmp_path / "rm")
    args = [*systems(tmp_path, (0, 1)), "--baseline", "b", "--reward", reward]
    with JudgeServer(longer) as server:
        judge = ["--judge", "j", "--judge.base_url", server.url, "--judge.key_env", "null"]
        settings = evaluated(tmp_path, *args, *judge).settings
    packages = ("meetlm", "torch", "transformers", "numpy", "scipy", "rouge-score", "openai")
    assert settings["versions"] == {name: version(name) for name in packages}
    assert settings["git"] == git_hash()
    model = RewardModel.load(RewardSettings(model=str(reward)))
    assert settings["reward"]["weights_sha256"] == sha256_of(model.model)
    assert settings["reward"]["precision"] == model.precision
    rows = [(prompt, " rice is a good food to eat") for prompt in PROMPTS]
    assert settings["data_sha256"] == hashlib.sha256("".join(map(repr, rows)).encode()).hexdigest()
    for name in ("report.html", "report.md"):
        text = html.unescape((tmp_path / "out" / name).read_text())
        for value in (settings["data_sha256"], settings["reward"]["weights_sha256"], settings["git"] or "git: null"):
            assert value in text
        assert f"rouge-score: {version('rouge-score')}" in text and f"openai: {version('openai')}" in text
    moved = folder_of("deberta", tmp_path / "moved", initializer_range=0.2)
    args[-1] = moved
    other = evaluated(tmp_path, *args).settings
    assert other["data_sha256"] == settings["data_sha256"] and "openai" not in other["versions"]
    assert other["reward"]["weights_sha256"] != settings["reward"]["weights_sha256"]
    data = held_out(tmp_path)
    data.write_text(data.read_text().replace("good food", "fine food", 1))
    assert meet("evaluate", *args, "--data.path", data, "--out", tmp_path / "out", "--quiet").exit_code == 0
    changed = Evaluation.read(tmp_path / "out" / "evaluation.json").settings
    assert changed["data_sha256"] != settings["data_sha256"]


def test_stored_judge_responses_need_no_openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, answers on disk are compared all the same, and the record names no version of it."""

    def hidden(name: str) -> str:
        if name == "openai":
            raise PackageNotFoundError(name)
        return version(name)

    with JudgeServer(longer) as server:
        judge = ["--judge", "j", "--judge.base_url", server.url, "--judge.key_env", "null"]
        args = [*systems(tmp_path, (0, 1)), "--baseline", "b", *judge]
        with_it = evaluated(tmp_path, *args)
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setattr(versions_module, "version", hidden)
    without = evaluated(tmp_path, *args)
    assert without.comparisons == with_it.comparisons
    assert set(with_it.settings["versions"]) - set(without.settings["versions"]) == {"openai"}


@pytest.mark.usefixtures("report")
def test_common_is_recorded(tmp_path: Path) -> None:
    """A comparison over the common prompts of two systems says so, in the report too."""
    args = systems(tmp_path, (0, 1))
    assert evaluated(tmp_path, *args, "--baseline", "b").settings["common"] is False
    file = tmp_path / "a.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:20]))
    evaluation = evaluated(tmp_path, *args, "--baseline", "b", "--common")
    assert len(evaluation.prompts) == 20 and evaluation.settings["common"] is True
    assert "common: true" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_nan_rewards_are_named_and_counted_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = RewardModel._forward

    def spoiled(self: RewardModel, rows: Any) -> Any:
        scores = right(self, rows)
        scores[0] = float("nan")
        return scores

    monkeypatch.setattr(RewardModel, "_forward", spoiled)
    args = [*systems(tmp_path, (0, 1)), "--baseline", "b", "--reward", folder_of("deberta", tmp_path / "rm")]
    for _ in range(2):  # the second time with stored values
        evaluation = evaluated(tmp_path, *args)
        named = [problem for problem in evaluation.problems if "NaN" in problem.description]
        assert named and all(problem.description.startswith("reward, ") for problem in named)
        lost = by_name(evaluation, "reward", "a").num_left_out
        assert lost == by_name(evaluation, "reward", "a").outcomes.count(None) > 0


def test_stored_scores_belong_to_a_model(tmp_path: Path) -> None:
    files = set()
    for kind in ("deberta", "bert"):
        model = RewardModel.load(RewardSettings(model=str(folder_of(kind, tmp_path / kind))))
        files.add(RewardScorer(model, tmp_path).file)
        files.add(RewardScorer(model, tmp_path).file)
    assert len(files) == 2


def test_what_is_refused(tmp_path: Path) -> None:
    args = systems(tmp_path, (0, 1))
    data = ["--data.path", held_out(tmp_path), "--out", tmp_path / "out"]
    assert "no such system; known: a, b" in meet("evaluate", *args, "--baseline", "d", *data).output
    assert "name another one to compare it with" in meet("evaluate", args[0], "--baseline", "a", *data).output
    assert "two systems have the name 'a'" in meet("evaluate", args[0], args[0], "--baseline", "a", *data).output
    assert "pass the held-out prompts as --data.path" in meet("evaluate", *args, "--baseline", "a").output
    assert "neither a run's folder nor a file" in meet("evaluate", "nowhere", "--baseline", "nowhere", *data).output


def test_files_with_other_sampling_are_refused(tmp_path: Path) -> None:
    args = systems(tmp_path, (0, 1), level="bad")
    rest = ["--baseline", "b", "--data.path", held_out(tmp_path), "--out", tmp_path / "out", "--quiet"]
    said = meet("evaluate", *args, "--max-new-tokens", 64, *rest).output
    assert "a was sampled with max_new_tokens 128, not 64" in said and "--max-new-tokens 128" in said
    evaluation = evaluated(tmp_path, *args, "--baseline", "b")
    named = [
        problem for problem in evaluation.problems if "has the level bad, but --level is good" in problem.description
    ]
    assert len(named) == 2


@pytest.mark.usefixtures("report")
def test_an_evaluator_without_outcomes_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "silent.py").write_text("def score(prompt, completion):\n    return None\n")
    monkeypatch.chdir(tmp_path)
    with JudgeServer(says("I would rather not say.")) as server:
        evaluation = evaluated(
            tmp_path,
            *systems(tmp_path, (0, 1)),
            *["--baseline", "b", "--scorer", "silent:score", "--judge", "j", "--judge.base_url", server.url],
            *["--judge.key_env", "null"],
        )
    assert [comparison.evaluator for comparison in evaluation.comparisons] == ["rouge-avg"]
    named = [
        problem.description
        for problem in evaluation.problems
        if "no outcome, so there is no comparison" in problem.description
    ]
    assert [name.split(",")[0] for name in named] == ["silent:score", "judge"]
    assert (
        evaluation.judge is not None
        and evaluation.judge.overall.num_without_verdict == evaluation.judge.overall.num_calls > 0
    )
    page, text = ((tmp_path / "out" / name).read_text() for name in ("report.html", "report.md"))
    assert "no outcome, so there is no comparison" in page and "no outcome, so there is no comparison" in text


def test_nobody_decides(tmp_path: Path) -> None:
    rows = [{"prompt": prompt, "completion": "…"} for prompt in PROMPTS]
    args = [f"{name}={written(tmp_path / f'{name}.jsonl', rows)}" for name in "ab"]
    data = written(tmp_path / "marks.jsonl", [{"prompt": p, "chosen": "……", "rejected": "!"} for p in PROMPTS])
    said = meet("evaluate", *args, "--baseline", "b", "--data.path", data, "--out", tmp_path / "out")
    assert said.exit_code == 1 and "no evaluator: pass --reward, --judge or --scorer" in said.output


def test_a_chosen_reply_that_rouge_cannot_read_is_named(tmp_path: Path) -> None:
    data = held_out(tmp_path)
    lines = data.read_text().splitlines()
    lines[3] = json.dumps({"chosen": f"{PROMPTS[3]} ......", "rejected": f"{PROMPTS[3]} no"})
    data.write_text("\n".join(lines))
    result = meet(
        *["evaluate", *systems(tmp_path, (0, 1)), "--baseline", "b", "--data.path", data, "--out", tmp_path / "out"]
    )
    assert result.exit_code == 0, result.output
    evaluation = Evaluation.read(tmp_path / "out" / "evaluation.json")
    (named,) = [problem for problem in evaluation.problems if "are not defined" in problem.description]
    assert named.count == by_name(evaluation, "rouge-avg", "a").num_left_out == 1
    assert "......" in named.examples[0]


def test_places_with_any_sign_in_their_name(tmp_path: Path) -> None:
    folder = tmp_path / "lr=1,2"
    folder.mkdir()
    args = [arg.split("=", 1)[1] for arg in systems(folder, (0, 1))]
    evaluation = evaluated(tmp_path, args[0], f"other={args[1]}", "--baseline", "other")
    assert [system.name for system in evaluation.systems] == ["a", "other"]


def test_completions_of_other_prompts_of_a_run_stay_apart(tmp_path: Path) -> None:
    """Completions of other prompts, or of the first prompts only, do not disturb an evaluation."""
    run = tmp_path / "run"
    execute(config_for(tmp_path, "llama", "lora"), run)
    other = written(tmp_path / "other.jsonl", [{"prompt": f"Is {n} odd?"} for n in range(3)])
    few = ["generate", run, "--max-new-tokens", 4]
    for more in (["--limit", 2], [], ["--data.path", other]):
        assert meet(*few, *more).exit_code == 0
    files = sorted(file.name for file in (run / "completions").iterdir())
    assert files[::2] == [f"good-t0-p1-n4-seed0{end}.jsonl" for end in ("-first2", "")]
    assert re.fullmatch(r"good-t0-p1-n4-seed0-of-other-[0-9a-f]{6}\.jsonl", files[1])
    args = ["evaluate", run, f"again={run}", "--baseline", "again", "--max-new-tokens", 4, "--quiet"]
    result = meet(*args, "--level", "", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    evaluation = Evaluation.read(tmp_path / "out" / "evaluation.json")
    whole = (run / "completions" / files[2]).read_text().splitlines()
    assert len(evaluation.cells) == len(whole) and not any(
        "under the same seed" in problem.description for problem in evaluation.problems
    )
    assert [Path(file).name for file in evaluation.systems[0].files] == [files[0], files[2]]
    assert meet(*args, "--data.path", held_out(tmp_path), "--level", "bad").output.count("meet generate") == 1


def test_only_files_that_would_be_compared_stop_an_evaluation(tmp_path: Path) -> None:
    """The name of a file decides: a broken file of another level or sampling is not read."""
    run = tmp_path / "run"
    execute(config_for(tmp_path, "llama", "lora"), run)
    assert meet("generate", run, "--max-new-tokens", 4).exit_code == 0
    (whole,) = (run / "completions").iterdir()
    row = json.loads(whole.read_text().splitlines()[0])
    out = tmp_path / "out"
    args = ["evaluate", run, f"again={run}", "--baseline", "again", "--max-new-tokens", 4, "--out", out, "--quiet"]
    for name in ("bad-t0-p1-n4-seed0", "good-t0.5-p1-n4-seed0", "good-t0-p1-n40-seed0", "mine"):
        whole.with_name(f"{name}.jsonl").write_text("no JSON\n")
    result = meet(*args)
    assert result.exit_code == 0, result.output
    broken = written(whole.with_name("good-t0-p1-n4-seed1.jsonl"), [{**row, "seed": 1}, {**row, "prompt": 3}])
    stopped = meet(*args)
    assert stopped.exit_code == 1 and f"{broken}:2: field 'prompt': is an integer" in stopped.output
    broken.unlink()
    whole.unlink()
    assert "has no completions of the held-out prompts at level good" in meet(*args).output


def test_the_order_of_weights_does_not_matter(tmp_path: Path) -> None:
    """1.5, good=1.5,bad=-0.5 and bad=-0.5,good=1.5 are the same level, so their completions are the same file."""
    run = tmp_path / "run"
    execute(config_for(tmp_path, "llama", "lora"), run)
    assert meet("generate", run, "--max-new-tokens", 4, "--level", "1.5").exit_code == 0
    args = [run, f"again={run}", "--baseline", "again", "--max-new-tokens", 4, "--out", tmp_path / "out", "--quiet"]
    for level in ("1.5", "good=1.5,bad=-0.5", "bad=-0.5,good=1.5"):
        result = meet("evaluate", *args, "--level", level)
        assert result.exit_code == 0, result.output


def test_a_run_without_its_weights_is_compared(tmp_path: Path) -> None:
    run = tmp_path / "run"
    execute(config_for(tmp_path, "llama", "lora"), run)
    assert meet("generate", run, "--max-new-tokens", 4, "--level", "good=1.5,bad=-0.5").exit_code == 0
    shutil.rmtree(run / "model")
    args = [run, f"again={run}", "--baseline", "again", "--max-new-tokens", 4, "--out", tmp_path / "out", "--quiet"]
    result = meet("evaluate", *args, "--level", "good=1.5,bad=-0.5")
    assert result.exit_code == 0, result.output
    assert meet("generate", run, "--max-new-tokens", 4).exit_code == 1


def test_a_run_without_completions_names_the_command(tmp_path: Path) -> None:
    execute(config_for(tmp_path, "llama", "lora"), tmp_path / "run")
    said = meet("evaluate", tmp_path / "run", "--baseline", "run", "--max-new-tokens", 4).output
    command = f"meet generate {tmp_path / 'run'} --level good --temperature 0 --top-p 1 --max-new-tokens 4"
    assert command in said
    assert meet(*command.split()[1:]).exit_code == 0
    folder = tmp_path / "hh rlhf" / "some"
    folder.mkdir(parents=True)
    sides = {side: f"\n\nHuman: Which colour is snow?\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    written(folder / "test.jsonl", [sides])
    few = ["evaluate", tmp_path / "run", "--baseline", "run", "--max-new-tokens", 4, "--out", tmp_path / "out"]
    said = meet(*few, "--data.path", folder.parent, "--data.subset", "some").output
    assert "meet generate" in said, said
    args = shlex.split(said[said.index("meet generate") :])
    data = dict(zip(args[3:9:2], args[4:9:2], strict=True))
    assert data == {"--data.path": str(folder.parent), "--data.source": "hh", "--data.subset": "some"}
    assert meet(*args[1:]).exit_code == 0
    assert (
        "name another one to compare it with"
        in meet(*few, "--data.path", folder.parent, "--data.subset", "some").output
    )
    other = systems(tmp_path)[0]
    result = meet("evaluate", tmp_path / "run", other, "--baseline", "a", "--max-new-tokens", 4)
    assert result.exit_code == 1 and "was sampled with max_new_tokens" in result.output


def test_seeds_of_a_prompt_stay_together(tmp_path: Path) -> None:
    """Three replicates of the same outcomes tell no more than one."""
    single = evaluated(tmp_path, *systems(tmp_path, (0, 1)), "--baseline", "b")
    args = [f"{arg},{arg.split('=')[1]},{arg.split('=')[1]}" for arg in systems(tmp_path, (0, 1))]
    three = evaluated(tmp_path, *args, "--baseline", "b")
    assert len(three.cells) == 3 * len(single.cells)
    assert by_name(single, "rouge-avg", "a").rates.delta == by_name(three, "rouge-avg", "a").rates.delta
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["systems"][0]["files"][0].endswith("a.jsonl")
