"""What a plan says beforehand is what a run then does: steps and tokens to the last one, memory as it is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from meetlm.cli import main
from meetlm.data.batch import collate
from meetlm.diagnostics.allocator import replays
from meetlm.diagnostics.gpus import GIB, RESERVED, gpus_needed
from meetlm.diagnostics.memory import Rehearsal, States
from meetlm.objectives.base import OBJECTIVES
from meetlm.objectives.nll import NLLSettings
from meetlm.policy import attention
from meetlm.run.execute import execute
from meetlm.run.plan import make_plan
from run_folders import config_for
from tiny import LENGTHS, sequences, tiny_control, tiny_lm, tiny_policy

BENCH = Path(__file__).parents[1] / "bench"
DPO = [
    {"name": "sft", "train": ["lm"], "lr": 1e-3, "epochs": 1, "format": "chosen"},
    {
        "name": "dpo",
        "train": ["lm"],
        "lr": 1e-4,
        "epochs": 2,
        "format": "pairwise",
        "objective": {"kind": "dpo", "beta": 0.1},
    },
]


@pytest.mark.parametrize(
    ("architecture", "kind", "stages"),
    [("llama", "lora", None), ("gpt-neo", "lora", None), ("gptj", "soft-prompt", None), ("qwen3", "none", DPO)],
    ids=["packed", "gpt-neo", "padded", "dpo"],
)
def test_steps_and_tokens_are_those_of_the_run(
    architecture: str, kind: str, stages: list[dict[str, Any]] | None, tmp_path: Path
) -> None:
    overrides = ["batch.pairs=5", "batch.micro_pairs=5", *(["control.levels=[good]"] if stages else [])]
    config = config_for(tmp_path, architecture, kind, *overrides, stages=stages)
    made = make_plan(config, shapes=())
    execute(config, tmp_path / "run", progress=False)
    assert made.layout == ("padded" if architecture == "gptj" else "packed")
    assert [stage.name for stage in made.stages] == [stage.name for stage in config.stages]
    for stage in made.stages:
        folder = tmp_path / "run" / stage.name
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert stage.counts.steps == len(lines) == json.loads((folder / "stage.json").read_text())["steps"]
        assert stage.counts.tokens == sum(line["input_tokens"] for line in lines)
        assert stage.seconds is not None and 0 < stage.seconds.least <= stage.seconds.likely <= stage.seconds.most
        shares = stage.name == "dpo" and made.layout == "packed"
        assert (stage.counts.positions < stage.counts.tokens) == shares
        assert (stage.reference is not None) == (stage.name == "dpo")
    stages_alone = sum(one.seconds.likely for one in made.stages if one.seconds)
    assert made.seconds is not None and made.seconds.likely > stages_alone


class Live(TorchDispatchMode):
    """Counts the bytes of storages that operators made and that are still there, in a real pass."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(made):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            if storage._cdata in given or storage._cdata in self._known:
                continue
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.live -= size


@pytest.mark.parametrize("architecture", ["llama", "gpt-neo", "gptj", "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize("train", [("control",), ("control", "lm")], ids=["step1", "step2"])
def test_a_dry_run_takes_what_a_real_one_takes(architecture: str, train: tuple[str, ...]) -> None:
    """The same pass on the real model: the peak of all tensors above the weights is the same within 2%."""
    policy = tiny_policy(architecture, "lora", dtype=torch.float32)
    batch = collate(sequences(policy, LENGTHS * 3), policy.layout)
    policy.lm.requires_grad_("lm" in train)
    policy.train()
    real = Live()
    with real:
        logps = policy(batch["blocks"], batch["num_completions"])
        sums = logps.sums()
        loss = -sums.sum()
        del logps, sums
        loss.backward()
    lm = tiny_lm(architecture, dtype=torch.float32)
    objective = OBJECTIVES["nll"].build(NLLSettings())
    rehearsal = Rehearsal(lm, tiny_control(lm, "lora"), train, objective, policy.layout, bf16=False)
    planned = rehearsal.forward_backward(batch)
    assert planned.above_weights == pytest.approx(real.peak, rel=0.02)
    sizes = [p.numel() * 4 for p in policy.parameters() if p.requires_grad]
    assert (rehearsal.states.gradients, rehearsal.states.moments) == (sum(sizes), 2 * sum(sizes))


@pytest.mark.parametrize(("bf16", "way"), [(True, "at_once"), (False, "in_blocks")], ids=["cuda", "cpu"])
def test_a_dry_run_attends_as_the_device_does(bf16: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks on CPUs, at once on others: a GPU keeps no masks."""
    batch = collate(sequences(tiny_policy("llama", "lora"), LENGTHS), "packed")
    right = getattr(attention, way)
    calls: list[int] = []

    def counted(*given: Any) -> list[Tensor]:
        calls.append(len(given))
        found: list[Tensor] = right(*given)
        return found

    def wrong(*_: Any) -> None:
        raise AssertionError("the other device's way")

    monkeypatch.setattr(attention, "in_blocks", wrong)
    monkeypatch.setattr(attention, "at_once", wrong)
    monkeypatch.setattr(attention, way, counted)
    lm = tiny_lm("llama", dtype=torch.float32)
    objective = OBJECTIVES["nll"].build(NLLSettings())
    Rehearsal(lm, tiny_control(lm, "lora"), ("control",), objective, "packed", bf16=bf16).forward_backward(batch)
    assert len(calls) == lm.config.num_hidden_layers


def test_gpus_by_hand() -> None:
    states = States(weights=60 * GIB, gradients=20 * GIB, moments=20 * GIB)
    gib = {"alone": 5 * GIB, "sharded": 4 * GIB, "gathered": 2 * GIB}
    assert gpus_needed(states, **gib, size=106 * GIB + RESERVED) == 1
    assert gpus_needed(states, **gib, size=104 * GIB + RESERVED) == 2  # 100 / 98: two share
    assert gpus_needed(states, **gib, size=26 * GIB + RESERVED) == 5  # 100 / 20
    assert gpus_needed(states, **gib, size=6 * GIB + RESERVED) is None


def test_the_command(tmp_path: Path) -> None:
    config = config_for(tmp_path, "llama", "lora")
    file = tmp_path / "config.yaml"
    assert config.recipe == "mine"
    words = ["plan", "--config", str(file), "--no-calibrate", "--gpu", "24", "--gpu", "80"]
    shown = CliRunner().invoke(main, words)
    assert shown.exit_code == 0, shown.output
    for expected in (
        "12 of 12 rows kept",
        "step1",
        "step2",
        "not timed",
        "GPUs of 24 GiB",
        "GPT-Neo 1.3B",
        "Llama 70B",
        "in one process",
    ):
        assert expected in shown.output
    found = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert [stage["name"] for stage in found["stages"]] == ["step1", "step2"]
    assert found["seconds"] is None
    seven = next(one for one in found["gpus"] if "7B" in one["model"])
    assert seven["memory"]["states"]["weights"] > 6e9 * 4  # f32 master weights
    assert not (tmp_path / "run").exists()


def test_checkpointing_takes_less(tmp_path: Path) -> None:
    plain, less = (
        make_plan(
            config_for(tmp_path / str(on), "llama", "lora", f"model.gradient_checkpointing={on}"),
            timed=False,
            shapes=(),
        )
        for on in (False, True)
    )
    assert less.stages[1].memory.above < plain.stages[1].memory.above


@pytest.mark.slow
@pytest.mark.skipif(not replays(), reason="the C library does not say what it holds")
@pytest.mark.parametrize("job", ["lora-two-levels", "full"])
def test_memory_is_what_the_process_takes(job: str) -> None:
    """SmolLM2 in a process of its own, as the benchmark measures it: within 15%."""
    words = [sys.executable, str(BENCH / "worker.py"), job, "ours", json.dumps({"steps": 4})]
    worker = subprocess.run(words, input="go\ngo\ngo\n", capture_output=True, text=True, cwd=BENCH, check=False)
    told = [json.loads(line) for line in worker.stdout.splitlines()]
    assert [event["next"] for event in told] == ["step"] * 4, worker.stderr
    words = [sys.executable, str(BENCH / "planned.py"), "--jobs", job, "--steps", "3"]
    planned = subprocess.run(words, capture_output=True, text=True, cwd=BENCH, check=True).stdout.splitlines()
    said = next(one for one in map(json.loads, planned) if one["program"] == "ours")
    states = said["weights_mb"] + said["gradients_mb"] + said["moments_mb"]
    assert said["total_mb"] == pytest.approx(states + told[-1]["above_mb"], rel=0.15)
