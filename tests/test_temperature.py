"""Temperatures against several baselines, stopped half-way and started again: real runs, real completions."""

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

PLACES = [(t, baseline) for t in (0, 1) for baseline in ("r1", "r2")]


def sweep(runs: list[Path], out: Path) -> Result:
    words = ["sweep-temperature", *runs, "--baseline", "r1", "--baseline", "r2", "--temperatures", "0,1"]
    words += ["--max-new-tokens", 4, "--limit", 3, "--sampling-seed", 5, "--out", out, "--quiet"]
    return CliRunner().invoke(main, [str(word) for word in words])


def found(out: Path) -> dict[tuple[int, str], Evaluation]:
    return {(t, name): Evaluation.read(out / f"t{t}" / name / "evaluation.json") for t, name in PLACES}


def test_two_baselines_stopped_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [tmp_path / f"r{seed}" for seed in range(3)]
    for seed, run in enumerate(runs):
        execute(config_for(tmp_path / f"c{seed}", "llama", "lora", f"seed={seed}"), run)
    right, written = temperature.write_completions, Counter[Path]()

    def counted(run: Path, *given: Any, **more: Any) -> Path:
        file: Path = right(run, *given, **more)
        written[file] += 1
        return file

    def stops_at_the_fifth(run: Path, *given: Any, **more: Any) -> Path:
        if written.total() == 4:
            raise KeyboardInterrupt
        return counted(run, *given, **more)

    monkeypatch.setattr(temperature, "write_completions", stops_at_the_fifth)
    assert sweep(runs, tmp_path / "out").exit_code == 130
    assert not (tmp_path / "out" / "temperature.html").exists() and (tmp_path / "out" / "t0" / "r2").is_dir()
    first = Evaluation.read(tmp_path / "out" / "t0" / "r1" / "evaluation.json")
    monkeypatch.setattr(temperature, "write_completions", counted)
    done = sweep(runs, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(written) == 3 * 2 and set(written.values()) == {1}  # nothing was made twice
    again = found(tmp_path / "out")
    assert again[0, "r1"] == first
    for (t, baseline), one in again.items():
        assert one.baseline == baseline and [system.name for system in one.systems] == ["r0", baseline]
        assert {comparison.system for comparison in one.comparisons} == {"r0"} and len(one.prompts) == 3
        stated = {name: one.settings[name] for name in ("temperature", "sampling_seed", "limit", "level", "common")}
        assert stated == {"temperature": t, "sampling_seed": 5, "limit": 3, "level": None, "common": False}
    assert again[1, "r1"].completions["r0"] == again[1, "r2"].completions["r0"]

    # The same as a sweep that nobody stopped, and a page that names both.
    assert sweep(runs, tmp_path / "whole").exit_code == 0 and written.total() == 6
    assert found(tmp_path / "whole") == again
    pages = [(tmp_path / name / "temperature.html").read_text(encoding="utf-8") for name in ("out", "whole")]
    assert pages[0] == pages[1]
    for t, baseline in PLACES:
        assert f'href="t{t}/{baseline}/report.html"' in pages[0]
        assert (tmp_path / "out" / f"t{t}" / baseline / "report.html").is_file()
        assert f"Temperature {t} against {baseline}" in pages[0]
    assert "Δ against r1 by rouge-avg" in pages[0] and "Δ against r2 by rouge-avg" in pages[0]
    text = (tmp_path / "out" / "temperature.md").read_text(encoding="utf-8")
    assert "r0 was compared with r1 and r2 on 3 held-out prompts at 2 temperatures (0, 1)" in text
    assert text.count("sampling_seed: 5") == len(PLACES)
