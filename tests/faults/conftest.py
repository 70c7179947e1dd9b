"""Inputs of the tests of faults, and a summary of what they have counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import run, succeed

from run_folders import config_for


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model that has dropout, data, and configurations; their runs have 6 steps per stage."""
    folder = tmp_path_factory.mktemp("inputs")
    config_for(folder, "gpt2", "lora")
    lm = json.loads((folder / "lm" / "config.json").read_text())
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.1)
    (folder / "lm" / "config.json").write_text(json.dumps({**lm, **dropout}))
    config = json.loads((folder / "config.yaml").read_text())
    config["batch"] |= {"save_steps": 2, "log_steps": 3, "keep_checkpoints": True}
    for stage in config["stages"]:
        stage["epochs"] = 2
    (folder / "config.yaml").write_text(json.dumps(config))
    for stage in ("recipe", "control", "stages"):
        del config[stage]
    (folder / "shared.yaml").write_text(json.dumps({**config, "optim": {"epochs": 1}}))
    prompts = [{"prompt": f"\n\nHuman: What is {n}?\n\nAssistant:"} for n in range(10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return folder


@pytest.fixture(scope="session")
def trained(inputs: Path) -> Path:
    """Return a finished run."""
    succeed(run(["train", "--config", inputs / "config.yaml", "--out", inputs / "run"], inputs / "process"))
    return inputs / "run"


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a function that adds a line to the summary of the tests."""
    return lambda line: request.node.user_properties.append(("faults", line))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = {line for report in reports for name, line in getattr(report, "user_properties", ()) if name == "faults"}
    if lines:
        terminalreporter.section("faults")
        for line in sorted(lines):
            terminalreporter.write_line(line)
