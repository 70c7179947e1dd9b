"""Exports compute what the run computes, as the other tool reads them; a broken export fails the check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import meetlm
from meetlm.cli import main
from meetlm.config.errors import ConfigError
from meetlm.run.execute import execute
from run_folders import config_for

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),  # PEFT's
    pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning"),  # PEFT's
]


def run_of(folder: Path, architecture: str, kind: str, *overrides: str, **more: Any) -> Path:
    """Train a tiny run and return its folder."""
    execute(config_for(folder / "inputs", architecture, kind, *overrides, **more), folder / "run")
    return folder / "run"


@pytest.mark.parametrize(("architecture", "kind"), [("llama", "lora"), ("gemma3", "lora"), ("gemma3", "soft-prompt")])
def test_peft_export_of_all_levels(architecture: str, kind: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, architecture, kind)
    result = meetlm.export_run(run, "peft", limit=2)
    assert result.parity is not None and result.parity.largest < 1e-4
    assert result.parity.num_prompts == 4
    assert {file for file in result.files if file.endswith("adapter_config.json")} == {
        "bad/adapter_config.json",
        "good/adapter_config.json",
    }
    record = json.loads((result.folder / "export.json").read_text())
    assert record["parity"]["passes"] and record["format"] == "peft"


def test_a_mix_is_one_lora(tmp_path: Path) -> None:
    run = run_of(tmp_path, "llama", "lora")
    result = meetlm.export_run(run, "peft", [{"good": 1.5, "bad": -0.5}], limit=2)
    assert result.parity is not None and result.parity.largest < 1e-4
    config = json.loads((result.folder / "good=1.5,bad=-0.5" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["modules_to_save"] is None


def test_command(tmp_path: Path) -> None:
    run = run_of(tmp_path, "llama", "lora")
    arguments = ["export", str(run), "--to", "peft", "--level", "good", "--limit", "1"]
    done = CliRunner().invoke(main, [*arguments, "--no-verify"])
    assert done.exit_code == 0, done.output
    assert "was not compared with the run (--no-verify)" in done.stderr
    assert "AutoPeftModelForCausalLM" in done.stdout
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "largest difference of" in done.stderr
    done = CliRunner().invoke(main, [*arguments, "--tolerance", "0"])
    assert done.exit_code == 1 and "does not compute what the run computes" in done.stderr


def test_a_format_refuses_options_of_others(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown export format 'pft'; did you mean 'peft'"):
        meetlm.export_run(tmp_path, "pft")
