"""A sweep over temperatures with several baselines, interrupted and continued: real runs, real completions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meetlm.cli import main
from meetlm.evaluation.record import Evaluation
from meetlm.run import temperature
from meetlm.run.execute import execute
from run_folders import config_for

POINTS = [(t, baseline) for t in (0, 1) for baseline in ("r1", "r2")]


def sweep(runs: list[Path], out: Path, *more: str) -> Result:
    args = ["sweep-temperature", *runs, "--baseline", "r1", "--baseline", "r2", "--temperatures", "0,1"]
    args += ["--max-new-tokens", 4, "--limit", 3, "--sampling-seed", 5, "--out", out, "--quiet", *more]
    return CliRunner().invoke(main, [str(arg) for arg in args])


def test_two_baselines_interrupted_and_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tmp_path / f"r{seed}" for seed in range(3)]
    for seed, run in enumerate(runs):
        execute(config_for(tmp_path / f"c{seed}", "llama", "lora", f"seed={seed}"), run)
    original, written = temperature.write_completions, Counter[Path]()

    def interrupted(run: Path, *args: Any, **kwargs: Any) -> Any:
        if written.total() == 4 and not resumed:
            raise KeyboardInterrupt
        file, num_rows = original(run, *args, **kwargs)
        written[file] += 1
        return file, num_rows

    monkeypatch.setattr(temperature, "write_completions", interrupted)
    out, resumed = tmp_path / "out", False
    assert sweep(runs, out).exit_code == 130
    assert not (out / "temperature.html").exists() and (out / "t0" / "r2").is_dir()
    first = Evaluation.read(out / "t0" / "r1" / "evaluation.json")
    resumed = True
    result = sweep(runs, out)
    assert result.exit_code == 0, result.output
    assert len(written) == 3 * 2 and set(written.values()) == {1}  # nothing was generated twice
    evaluations = {(t, name): Evaluation.read(out / f"t{t}" / name / "evaluation.json") for t, name in POINTS}
    assert evaluations[0, "r1"] == first
    for (t, baseline), evaluation in evaluations.items():
        assert evaluation.baseline == baseline
        assert [system.name for system in evaluation.systems] == ["r0", baseline]
        assert {each.system for each in evaluation.comparisons} == {"r0"} and len(evaluation.prompts) == 3
        names = ("temperature", "sampling_seed", "limit", "level", "common")
        assert [evaluation.settings[name] for name in names] == [t, 5, 3, None, False]
    assert evaluations[1, "r1"].completions["r0"] == evaluations[1, "r2"].completions["r0"]

    page = (out / "temperature.html").read_text(encoding="utf-8")
    for t, baseline in POINTS:
        assert f'href="t{t}/{baseline}/report.html"' in page
        assert (out / f"t{t}" / baseline / "report.html").is_file()
        assert f"Temperature {t} against {baseline}" in page
    assert "Δ against r1 by rouge-avg" in page and "Δ against r2 by rouge-avg" in page
    text = (out / "temperature.md").read_text(encoding="utf-8")
    assert "r0 was compared with r1 and r2 on 3 held-out prompts at 2 temperatures (0, 1)" in text
    assert text.count("sampling_seed: 5") == len(POINTS)

    assert "every run is a --baseline" in sweep(runs, out, "--baseline", "r0").output
    assert "--baseline names a run twice" in sweep(runs, out, "--baseline", "r1").output
    assert "--baseline r7: no such system" in sweep(runs, out, "--baseline", "r7").output
    assert "expected numbers of 0 or more, separated by commas" in sweep(runs, out, "--temperatures", "a,b").output
    assert "expected numbers of 0 or more" in sweep(runs, out, "--temperatures", "nan").output
