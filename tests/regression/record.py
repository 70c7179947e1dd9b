"""Record what training, scoring, generation and export compute, so that a refactoring can show that nothing changed.

``python tests/regression/record.py`` computes everything and writes ``recorded.json``; ``test_regression.py`` computes
it again and compares. The call sites below follow the code when it changes; the recorded numbers do not. Record again
only when a change of the numbers is intended, and say in the changelog which numbers changed and why.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import load_file

from meetlm.cli import main as meet
from meetlm.data.batch import collate
from meetlm.data.encoding import Encoded
from meetlm.data.formats import FORMATS
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.export.peft import export_levels, peft_failure_reason
from meetlm.generation.decoding import Branch
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.loading import checkpoint_activations
from meetlm.policy.policy import Policy
from meetlm.training.callbacks import MetricsWriter
from meetlm.training.loop import StageTrainer
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import BatchSettings, OptimSettings
from run_folders import SIDES, local_model, write_pairs
from tiny import (
    CHATML,
    LENGTHS,
    TRAINED,
    encoder_of,
    first_logits,
    gradients,
    pairs,
    sequences,
    stage,
    tiny_lm,
    tiny_policy,
    tiny_tokenizer,
)

RECORDED = Path(__file__).with_name("recorded.json")
OFFSET = torch.tensor([0.5, -0.25])
"""Added to the reference's log-probs of (chosen, rejected), so that DPO's first loss is not that of equal policies."""


@dataclass(frozen=True)
class TrainingCase:
    """One training of a tiny model in f64: a choice from each of the independent dimensions."""

    architecture: str
    kind: str
    format: str = "conditional"
    placement: str = "first"
    layout: str | None = None
    """``packed`` or ``padded``; ``None`` = the one that the policy chooses."""
    checkpointing: bool = False
    changes: dict[str, Any] = field(default_factory=dict)
    """Further settings of the control."""

    @property
    def name(self) -> str:
        """What the case is recorded under."""
        parts = [self.architecture, self.kind, self.format, self.placement, self.layout or "automatic"]
        parts += ["checkpointed"] if self.checkpointing else []
        return " ".join([*parts, *(f"{key}={value}" for key, value in self.changes.items())])


BEFORE = "before_response"
# Pairwise: each value of one dimension meets each value of another at least once, where the two can be combined.
CASES = (
    TrainingCase("llama", "lora"),
    TrainingCase("llama", "lora", "conditional", "first", "padded", checkpointing=True),
    TrainingCase("llama", "soft-prompt", "conditional", BEFORE, None, checkpointing=True),
    TrainingCase("llama", "none", "pairwise"),
    TrainingCase("llama", "text", "chain", BEFORE),
    TrainingCase("llama", "special-token", "chosen", BEFORE, "padded"),
    TrainingCase("llama", "lora", changes={"rank": 80}),
    TrainingCase("gpt-neo", "lora", "pairwise", "first", None, checkpointing=True),
    TrainingCase("gpt-neo", "soft-prompt", "conditional", "first", "padded"),
    TrainingCase("gpt-neo", "text", "conditional", "first"),
    TrainingCase("gpt-neo", "special-token", "chain", BEFORE),
    TrainingCase("gpt2", "lora", "chosen", "first"),
    TrainingCase("gpt2", "soft-prompt", "pairwise", "first", "padded", checkpointing=True),
    TrainingCase("gpt2", "special-token", "conditional", "first"),
    TrainingCase("gpt2", "none", "chosen", "first", None, checkpointing=True),
    TrainingCase("gemma3", "lora", "chain", BEFORE, None, checkpointing=True),
    TrainingCase("gemma3", "soft-prompt", "chosen", "first"),
    TrainingCase("gemma3", "text", "pairwise", BEFORE, "padded"),
    TrainingCase("gemma3", "special-token", "pairwise", BEFORE),
    TrainingCase("gptj", "lora", "conditional", "first"),
    TrainingCase("gptj", "soft-prompt", "chain", BEFORE),
    TrainingCase("gptj", "none", "pairwise", "first", None, checkpointing=True),
    TrainingCase("qwen3", "lora", "conditional", BEFORE),
    TrainingCase("gemma", "soft-prompt", "conditional", "first"),
)


def case_policy(case: TrainingCase) -> Policy:
    """Return the policy of a case, a random step away from where its control starts."""
    lm = tiny_lm(case.architecture)
    if case.checkpointing:
        checkpoint_activations(lm)
    changes = {"placement": case.placement, **case.changes}
    if case.kind == "none":
        changes.pop("placement")
    return tiny_policy(case.architecture, case.kind, lm=lm, layout=case.layout, **changes)


def checksums(tensor: Tensor) -> list[float]:
    """Return the norm of a tensor and a sum that depends on the order of its entries."""
    flat = tensor.detach().double().flatten()
    return [float(flat.norm()), float((flat * torch.arange(1, len(flat) + 1).double().cos()).sum())]


def gradient_norms(policy: Policy, items: list[tuple[Encoded, ...]], objective: Any, reference: Any) -> dict[str, Any]:
    """Return the loss of a batch and the norm of its gradient in each module of the policy."""
    flat = [sequence for item in items for sequence in item]
    batch = collate(flat, policy.layout, share=policy.shares_prompts)
    logps = policy(batch["blocks"], batch["num_completions"])
    loss = objective(logps.sums(), None if reference is None else reference.flatten()).total
    loss.backward()
    groups: dict[str, list[Tensor]] = {}
    for name, gradient in gradients(policy).items():
        groups.setdefault(name.split(".")[0], []).append(gradient.flatten())
    return {
        "loss": float(loss.detach()),
        "logps": logps.sums().tolist(),
        "gradients": {name: checksums(torch.cat(parts)) for name, parts in sorted(groups.items())},
    }


def trained_case(case: TrainingCase, folder: Path) -> dict[str, Any]:
    """Train a case for three steps; return losses, gradients, log-probs, completions and the exported tensors."""
    policy = case_policy(case)
    encoder = encoder_of(policy)
    data_format = FORMATS[case.format]
    items = [data_format.item(encoder, example) for example in pairs(12)]
    train = ["control", "lm"] if case.kind in TRAINED else ["lm"]
    settings = stage(
        train,
        lr=1e-3,
        format=case.format,
        objective={"kind": "dpo", "beta": 0.1} if case.format == "pairwise" else {"kind": "nll"},
        **({"control_lr": 1e-2} if len(train) == 2 else {}),
    )
    reference = None
    if case.format == "pairwise":
        reference = policy.score([sequence for item in items for sequence in item])[0].view(-1, 2)
    set_trainable(policy, settings)
    objective = OBJECTIVES[settings.objective.kind].build(settings.objective)
    first = gradient_norms(policy, items[:4], objective, None if reference is None else reference[:4] + OFFSET)
    folder.mkdir(parents=True)
    metrics = MetricsWriter(folder / "metrics.jsonl")
    batch = BatchSettings(pairs=4, micro_pairs=2)
    trainer = StageTrainer(policy, items, settings, OptimSettings(), batch, folder, 0, [metrics], reference)
    trainer.train()
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    policy.eval()
    result = {
        "first batch": first,
        "steps": [{key: value for key, value in step.items() if is_recorded(key)} for step in steps],
        "logps": policy.score(sequences(policy, LENGTHS))[0].tolist(),
        "completions": completions(policy),
    }
    if peft_failure_reason(policy.control) is None:
        written = export_levels(policy.control, folder / "levels", folder / "model")
        result["export"] = {
            path.name: {name: checksums(t) for name, t in sorted(load_file(path / "adapter_model.safetensors").items())}
            for path in written
        }
    return result


def is_recorded(key: str) -> bool:
    """Whether a value of ``metrics.jsonl`` is compared: all but times."""
    return key.startswith(("loss", "rewards/")) or key in ("grad_norm", "learning_rate", "input_tokens", "step")


def completions(policy: Policy) -> dict[str, Any]:
    """Return greedy and sampled completions under both levels and, where the control mixes, between and beyond them."""
    session = Session(policy, PromptFormat(tiny_tokenizer(), FormatSpec(None, "auto", ("\n\nHuman:",))))
    generator = torch.Generator().manual_seed(11)
    branches = []
    for stream, length in enumerate((3, 17, 9, 1, 12)):
        level = stream % 2
        weights = (1.0, 0.0) if level == 0 else (0.0, 1.0)
        if stream == 4 and policy.control.weights_failure_reason((-0.5, 1.5)) is None:
            weights = (-0.5, 1.5)
        ids = torch.randint(4, 300, (length,), generator=generator).tolist()
        branches.append(Branch((*policy.control.slots[level], *ids), weights))
    results = {}
    for name, sampling in (
        ("greedy", Sampling(max_new_tokens=12)),
        ("sampled", Sampling(max_new_tokens=12, temperature=0.9, top_p=0.9)),
    ):
        requests = [Request((branch,), sampling, 3, stream) for stream, branch in enumerate(branches)]
        results[name] = [[text.text, text.num_tokens, text.finish] for text in session.complete(requests)]
    results["first logits"] = [checksums(row) for row in first_logits(policy, branches)]
    return results


def write_texts(path: Path, count: int) -> Path:
    """Write ``count`` pairs of plain text in the columns ``prompt``, ``chosen`` and ``rejected``."""
    rows = [
        {"prompt": f"Question {i}: {example.prompt.text().split(':')[1].split('?')[0].strip()}?\nAnswer:"}
        | {side: reply.content for side, reply in zip(SIDES, example.replies, strict=True)}
        for i, example in enumerate(pairs(count))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


MEET_STAGES = [
    {"name": "step1", "train": ["control"], "lr": 1e-2, "epochs": 1},
    {"name": "step2", "train": ["control", "lm"], "lr": 1e-3, "epochs": 1},
]
DPO_STAGES = [
    {"name": "sft", "train": ["lm"], "format": "chosen", "lr": 1e-3, "epochs": 1},
    {"name": "dpo", "train": ["lm"], "format": "pairwise", "objective": {"kind": "dpo"}, "lr": 1e-3, "epochs": 1},
]
RUNS: dict[str, dict[str, Any]] = {
    "MEET LoRA on HH transcripts": {"data": "hh", "control": {"kind": "lora", "rank": 2}, "stages": MEET_STAGES},
    "MEET soft prompt on conversations": {
        "data": "chat",
        "control": {"kind": "soft-prompt", "length": 3},
        "stages": MEET_STAGES,
    },
    "CoH on texts": {
        "data": "text",
        "control": {"kind": "text", "prompts": {"bad": "A bad answer. ", "good": "A good answer. "}},
        "stages": [{"name": "tune", "train": ["lm"], "lr": 1e-3, "epochs": 1}],
    },
    "DPO on texts": {"data": "text", "control": {"kind": "none"}, "stages": DPO_STAGES},
    "CoH chains on HH transcripts": {
        "data": "hh",
        "control": {"kind": "text", "placement": BEFORE},
        "stages": [{"name": "tune", "train": ["lm"], "format": "chain", "lr": 1e-3, "epochs": 1}],
    },
}
LEVELS = {"text": ("bad", "good"), "none": ("good",)}


def accuracy(measured: dict[str, Any]) -> dict[str, float | None]:
    """Return what ``preference.json`` holds of one moment, without intervals."""
    rates = {name: measured[name] for name in ("by_sum", "by_token", "reward", "shorter")}
    values = {name: rate and rate["value"] for name, rate in rates.items()}
    return {**values, "pairs": measured["pairs"], "nll": measured["nll"]}


def command(*arguments: str | Path) -> None:
    """Run a ``meet`` command."""
    meet.main([str(argument) for argument in arguments], standalone_mode=False)


def recorded_run(name: str, folder: Path) -> dict[str, Any]:
    """Train and generate by the command line; return what the run's files hold."""
    folder.mkdir(parents=True)
    settings = RUNS[name]
    data, kind = settings["data"], settings["control"]["kind"]
    files = {}
    for split, count in (("train", 12), ("eval", 6)):
        path = folder / f"{split}.jsonl"
        files[f"{split}_file"] = str(
            write_texts(path, count) if data == "text" else write_pairs(path, count, chat=data == "chat")
        )
    config = {
        "recipe": "mine",
        "model": {
            "name": str(local_model(folder / "lm", "llama", template=CHATML if data == "chat" else None)),
            "device": "cpu",
        },
        "data": {"source": "hh" if data == "hh" else "pairs", **files, "max_length": 128},
        "control": settings["control"],
        "batch": {"pairs": 4, "micro_pairs": 2},
        "stages": settings["stages"],
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    run = folder / "run"
    command("train", "--config", folder / "config.yaml", "--out", run, "--quiet")
    generated = {}
    for level in LEVELS.get(kind, ("bad", "good", "good=1.5,bad=-0.5")):
        for sampling in (("--max-new-tokens", "12"), ("--max-new-tokens", "12", "--temperature", "0.8")):
            out = folder / "completions.jsonl"
            command("generate", run, "--level", level, *sampling, "--out", out)
            generated[" ".join([level, *sampling[2:]])] = [
                json.loads(line)["completion"] for line in out.read_text().splitlines()
            ]
            out.unlink()
    return {
        "steps": {
            stage["name"]: [
                {key: value for key, value in json.loads(line).items() if is_recorded(key)}
                for line in (run / stage["name"] / "metrics.jsonl").read_text().splitlines()
            ]
            for stage in settings["stages"]
        },
        "preference accuracy": {
            when: accuracy(measured) for when, measured in json.loads((run / "preference.json").read_text()).items()
        },
        "completions": generated,
        "control": {
            str(path.relative_to(run)): [checksums(tensor) for _, tensor in sorted(load_file(path).items())]
            for path in sorted([*run.glob("*.safetensors"), *run.glob("controls/*/*.safetensors")])
        },
        "model": [checksums(tensor) for _, tensor in sorted(load_file(run / "model/model.safetensors").items())],
    }


def record() -> None:
    """Compute everything and write ``recorded.json``."""
    folder = Path(tempfile.mkdtemp())
    os.environ["MEETLM_CACHE"] = str(folder / "cache")
    try:
        recorded = {
            "cases": {case.name: trained_case(case, folder / case.name) for case in CASES},
            "runs": {name: recorded_run(name, folder / name) for name in RUNS},
        }
    finally:
        shutil.rmtree(folder)
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
    print(f"{len(recorded['cases'])} cases and {len(recorded['runs'])} runs in {RECORDED}")


if __name__ == "__main__":
    record()
