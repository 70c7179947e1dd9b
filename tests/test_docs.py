"""The commands in docs/levels.md run as written, on small files and a tiny model in place of SmolLM2."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meetlm.cli import main
from meetlm.run.execute import execute
from reward_models import folder_of
from run_folders import config_for, local_model, write_pairs

PAGE = Path(__file__).parents[1] / "docs" / "levels.md"
SHORT = {
    "train": ["--batch.pairs", "8", "--data.max_length", "128"],
    "improve": ["--batch.pairs", "8", "--max-new-tokens", "5"],
    "rollout": ["--max-new-tokens", "5"],
    "generate": ["--max-new-tokens", "5"],
    "dial": ["--max-new-tokens", "5", "--repetition-increase", "1", "--cut-increase", "1", "--nll-increase", "100"],
}
"""Options that make a command quick; they come after the options of the page."""
NOUNS = ("tea", "rice", "water", "bread")


def commands() -> Iterator[list[str]]:
    """Yield the arguments of each command of the page; those on the demo's run, which takes minutes, are left out."""
    for block in re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("meet ") and "runs/demo" not in line:
                yield shlex.split(line, comments=True)[1:]


def write_files() -> None:
    """Write the files and runs that the page names into the current folder."""
    replies = [(f"What is {NOUNS[n % 4]} {n}?", f"It is {'good ' * (n % 5)}{n}.", n % 5) for n in range(300)]
    with Path("scores.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("prompt", "completion", "score"), *((p, r, s + 0.01 * s) for p, r, s in replies)]
        )
    steer = [
        {"prompt": p, "response": f"{r}{extra}", "helpfulness": (s + extra) % 5, "verbosity": (s * 2) % 5}
        for p, r, s in replies
        for extra in (0, 1)
    ]
    styles = [
        {"prompt": p, "completion": r, "attributes": {"tone": ("casual", "formal")[s % 2], "length": length}}
        for p, r, s in replies[:120]
        for length in [("brief", "detailed")[s > 2]]
    ]
    pairs = [{"prompt": p, "chosen": r, "rejected": "No idea."} for p, r, _ in replies[:12]]
    rows: dict[str, list[dict[str, Any]]] = {
        "helpsteer": steer,
        "styles": styles,
        "pairs": pairs,
        "prompts": [{"prompt": p} for p, _, _ in replies[:80]],
    }
    for name, lines in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Path("my_scorers.py").write_text(
        "def brevity(prompt, completion):\n    return -len(completion)\n\n\n"
        "def politeness(prompt, completion):\n    return completion.count('e')\n\n\n"
        "def formality(prompt, completion):\n    return completion.count('a')\n"
    )
    test = write_pairs(Path("test.jsonl"), 12)
    execute(config_for(Path("made"), "llama", "lora", f"data.eval_file={test}"), Path("runs/lora"))
    shutil.copytree("runs/lora", "runs/meet")
    folder_of("deberta", Path("runs/rm"))


@pytest.mark.slow
def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_files()
    tiny = str(local_model(tmp_path / "tiny", "llama"))
    failures = []
    for args in commands():
        short = SHORT.get(args[0], [])
        command_args = [tiny if arg == "smollm2" else arg for arg in args] + short
        result = CliRunner().invoke(main, command_args, input="/level\n/quit\n" if args[0] == "chat" else None)
        if result.exit_code:
            failures.append(f"meet {shlex.join(args)}\n{result.output[-600:]}\n{result.exception!r}")
    assert not failures, "\n\n".join(failures)
