"""The commands and programs of docs/use.md run as written, on a tiny model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import meetlm
from meetlm.cli import main
from run_folders import local_model, write_pairs
from tiny import CHATML

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's
PAGE = (Path(__file__).parents[1] / "docs" / "use.md").read_text(encoding="utf-8")
MESSAGES = [{"role": "user", "content": "How was your day?"}]


def section(heading: str, language: str = "python") -> str:
    """Return the first block of code in a section."""
    text = PAGE if heading == "" else PAGE.split(f"\n## {heading}\n")[1]
    match = re.search(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


@pytest.mark.slow
def test_from_training_to_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path / "pairs.jsonl", 60, chat=True)
    model = local_model(tmp_path / "lm", "llama", template=CHATML)
    changes = {"--data.holdout 200": "--data.holdout 8", "--model.name smollm2": f"--model.name {model}"}
    for command in section("", "").splitlines():
        for text, replacement in changes.items():
            command = command.replace(text, replacement)
        result = CliRunner().invoke(main, shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, result.output
    expected = meetlm.load("runs/mine").generate([MESSAGES], "good", max_new_tokens=64)
    for heading in ("transformers and PEFT", "A plain model in a pipeline"):
        names: dict[str, Any] = {}
        exec(section(heading), names)
        assert [names["reply"].strip()] == expected
