"""The experiments' plan, runner and page; the arms themselves take hours and run with `make experiments`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meetlm.config.reporter import SILENT

FOLDER = Path(__file__).parents[1] / "experiments"
MODULES = ("arms", "measures", "report", "run", "tasks")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The modules of experiments/, in an empty folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    yield {name: __import__(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name)


def arms_of(modules: dict[str, Any]) -> list[Any]:
    return list(modules["arms"].Experiments(modules["tasks"].read_plan(), SILENT).arms())


def test_every_tracked_result_belongs_to_an_arm_of_the_plan(modules: dict[str, Any]) -> None:
    arms = arms_of(modules)
    names = {arm.name for arm in arms}
    assert len(names) == len(arms)
    tracked = {str(file.relative_to(FOLDER / "results").with_suffix("")) for file in FOLDER.glob("results/*/*.json")}
    assert tracked <= names
    for arm in arms:
        assert arm.name not in tracked or modules["run"].finished(arm) is not None, f"{arm.name}: settings have changed"


def test_an_arm_of_other_settings_runs_again(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = modules["run"]
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    arm = arms_of(modules)[0]
    file = tmp_path / f"{arm.name}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"settings": run.digest(arm.settings), "metrics": {"reward": [1.0]}}))
    assert run.finished(arm) == {"reward": [1.0]}
    other = type(arm)(arm.name, {**arm.settings, "seed": 9}, arm.run)
    assert run.finished(other) is None


def test_an_arm_that_runs_is_left_to_its_process(modules: dict[str, Any]) -> None:
    arm = arms_of(modules)[0]
    with modules["run"].claimed(arm) as is_mine, modules["run"].claimed(arm) as again:
        assert (is_mine, again) == (True, False)


def test_rewards() -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        from tasks import casual_tone, short_words
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop("tasks")
    assert short_words(None, "I am ok, 12!") == pytest.approx(-5 / 3)
    assert casual_tone(None, "Yeah, that is ok") == pytest.approx(10 * (2 - 1) / 4)
    assert short_words(None, " ") is None and casual_tone(None, "") is None


def measures(rng: random.Random, reward: float, count: int = 12) -> dict[str, list[float]]:
    noise = [rng.gauss(0, 0.05) for _ in range(count)]
    return {
        "reward": [reward + value for value in noise],
        "words": [20 + 10 * value for value in noise],
        "nll": [3 + value for value in noise],
        "repetition": [0.0] * count,
        "cut": [0.0] * count,
    }


def test_the_page_states_differences_and_where_fluency_breaks(
    modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report, rng = modules["report"], random.Random(0)
    monkeypatch.setattr(modules["run"], "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "DOCS", tmp_path)
    settings_by_arm = {arm.name: modules["run"].digest(arm.settings) for arm in arms_of(modules)}
    plan = modules["tasks"].read_plan()
    rewards = {"CoH": 0.1, "SFT": 0.3, "DPO": 0.5, "MEET": 0.4}
    for seed in plan["seeds"]:
        results: dict[str, Any] = {f"headline/tone-{name}": measures(rng, value) for name, value in rewards.items()}
        settings = [f"level {level:g}" for level in plan["dial"]["levels"]]
        replies = {setting: measures(rng, 0.4 * number) for number, setting in enumerate(settings)}
        replies |= {f"guidance {strength:g}": measures(rng, 0.6) for strength in plan["dial"]["guidance"]}
        replies["level 3"]["repetition"] = [0.2] * 12
        recommended = {"level": {"recommended": 2.0}, "guidance": {"recommended": 0.0}}
        results["dial/tone"] = {"recommended": recommended, "replies": replies}
        results["quantiles/short-words"] = {f"q{level}": measures(rng, 0.1 * level) for level in range(5)}
        results["improve/short-words"] = {"reward": [measures(rng, 0.2 * number)["reward"] for number in range(3)]}
        for name, metrics in results.items():
            arm = f"{name}-seed{seed}"
            file = tmp_path / "results" / f"{arm}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"settings": settings_by_arm[arm], "metrics": metrics}))
    report.main()
    page = (tmp_path / "experiments.md").read_text(encoding="utf-8")
    differences = next(line for line in page.splitlines() if line.startswith("| DPO | ") and "**" in line)
    meet, by_level = differences.split(" | ")[1:3]
    assert meet.startswith("**−0.") and by_level.startswith("**1.")  # 0.4 and, at level 2, 1.6, against 0.5
    row = next(line for line in page.splitlines() if line.startswith("| level 3 "))
    assert "repeated 4-grams +0.20" in row
    assert "The reward rises with the level" in page
    assert (tmp_path / "experiments-tone.svg").is_file()
    assert "## Not run yet\n\n- Methods and the dial: short-words\n" in page
