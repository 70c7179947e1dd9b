"""Tries a lever on a training step, inside one process, the ways in turns: what LOG.md quotes.

    python bench/levers.py step [--job lora-sft]     one step as it is: for settings of the environment
    python bench/levers.py rows [--job lora-sft]     8 rows a step in passes of 1, 2, 4 and 8
    python bench/levers.py wide                      LoRA of K levels and rank r: all rows of A, or each level's own
    python bench/levers.py compile [--job full]      torch.compile of the norms and the MLPs
    python bench/levers.py bf16 [--job lora-sft]     products of f32 tensors with operands rounded to bf16 (AMX)
    python bench/levers.py split                     a product in f32, with bf16 operands, and as three bf16 products
    python bench/levers.py products                  a layer's products by torch, and by oneDNN
    python bench/levers.py head                      the head of SmolLM2, trained: words at a time, probabilities kept
                                                     for backward or made again
    python bench/levers.py keep [--job full]         a step whose trained head keeps probabilities, or makes them again
    python bench/levers.py attention                 attention of 10 layers: sequence by sequence, in blocks of queries;
                                                     on CUDA, in bf16, by the kernel for sequences of any length

With --plain memory is kept as it is by default, not as `meet` has it.

Seconds of forward and backward over the same four steps' rows, in each of some rounds; the first is warm-up.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

from meetlm.config.process import prepare

if "--plain" not in sys.argv:
    prepare()  # before torch is imported

import torch
from rows import Rows, Scale
from stages import STAGES
from torch import Tensor, nn

from meetlm.controls import lora
from meetlm.controls.build import build_control, parse_control
from meetlm.data.batch import collate
from meetlm.data.encoding import Encoded, one_hot
from meetlm.policy import attention, head, packed
from meetlm.policy.packed_layout import PackedLayout
from meetlm.policy.policy import Policy
from meetlm.training.run_stage import set_trainable
from meetlm.training.stage import StageSettings

STEPS, ROWS, ROUNDS = 4, 8, 4
Ways = dict[str, Callable[[], None]]
Series = list[tuple[str, Ways]]
"""Ways of each of some titles; none where a lever prints what it finds itself."""


def main() -> None:
    """Time the ways of a lever in turns and print each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lever", choices=list(LEVERS))
    parser.add_argument("--plain", action="store_true", help="keep memory as it is by default")
    parser.add_argument("--job", default="lora-sft", choices=sorted({job for job, _ in STAGES}))
    chosen = parser.parse_args()
    for title, ways in LEVERS[chosen.lever](chosen.job):
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(ROUNDS):
            for name in ways if number % 2 == 0 else reversed(ways):
                started = perf_counter()
                ways[name]()
                seconds[name].append(perf_counter() - started)
        for name, (first, *rest) in seconds.items():
            print(f"{title}, {name}: {', '.join(f'{one:.2f}' for one in rest)} s (warm-up {first:.2f})", flush=True)


def prepared(job: str, *, compiled: bool = False) -> tuple[Policy, list[list[Encoded]]]:
    """Return a policy as the job's stage trains it, and the rows of some steps."""
    rows = Rows(Scale(steps=STEPS))
    of_control, of_stage = STAGES[job, "ours"]
    lm = rows.lm().eval()
    control = rows.control(lm, of_control)
    stage = StageSettings(name=job, epochs=1, **of_stage)
    items = rows.items(stage.format, control)
    policy = Policy(lm, control, longest=max(len(one.ids) for item in items for one in item))
    set_trainable(policy, stage)
    if compiled:
        for layer in lm.model.layers:
            for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                part.compile(dynamic=True)
    flat = [one for item in items for one in item]
    return policy, [flat[start : start + ROWS] for start in range(0, STEPS * ROWS, ROWS)]


def passes(policy: Policy, steps: list[list[Encoded]], rows: int = ROWS) -> Callable[[], None]:
    """Return what goes forward and backward over all steps, ``rows`` sequences a pass."""

    def go() -> None:
        for step in steps:
            for start in range(0, len(step), rows):
                batch = collate(step[start : start + rows], policy.layout, share=policy.shares_prompts)
                (-policy(batch["blocks"], batch["num_completions"]).values.sum()).backward()
            for parameter in policy.parameters():
                parameter.grad = None

    return go


def in_passes(job: str) -> Series:
    """Return passes of few and of many rows."""
    policy, steps = prepared(job)
    return [(job, {f"{rows} a pass": passes(policy, steps, rows) for rows in (1, 2, 4, 8)})]


def as_it_is(job: str) -> Series:
    """Return a step."""
    return [(job, {"as it is": passes(*prepared(job))})]


def compiled(job: str) -> Series:
    """Return a step with and without torch.compile."""
    return [(job, {"as it is": passes(*prepared(job)), "compiled": passes(*prepared(job, compiled=True))})]


def wide(_: str) -> Series:
    """Return for some K and r both ways through LoRA; rows of 128 random tokens, levels in turn."""
    rows = Rows(Scale(steps=1))
    made = []
    for levels, rank in ((2, 4), (16, 4), (2, 64), (5, 64), (16, 64)):
        lm = rows.lm().eval().requires_grad_(False)
        names = [f"q{number}" for number in range(levels)]
        control = build_control(
            parse_control({"kind": "lora", "rank": rank, "levels": names}), lm, rows.format.words, seed=0
        )
        policy = Policy(lm, control, longest=128)
        ids = torch.randint(0, 40_000, (ROWS, 128), generator=torch.Generator().manual_seed(0)).tolist()
        step = [Encoded.of_one(tuple(row), 64, one_hot(at % levels, levels)) for at, row in enumerate(ids)]
        go = passes(policy, [step])
        made.append((f"K={levels}, r={rank}", {"all": _with(10**9, go), "own": _with(1, go)}))
    return made


def attending(_: str) -> Series:
    """Return for some lengths all ways through the attention of 2,048 tokens in 10 layers, forward and backward."""
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    made = []
    for length in (64, 128, 192, 256, 512, 1024, 2048):
        shapes = [(1, 2048, heads, 64) for heads in (9, 3, 3)]
        tensors = [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2).requires_grad_() for shape in shapes]
        outer = torch.randn(shapes[0], device=device, dtype=dtype)
        borders = [*range(0, 2048, length), 2048]

        def go(
            way: str | int, tensors: list[Tensor] = tensors, outer: Tensor = outer, borders: list[int] = borders
        ) -> None:
            if isinstance(way, int):
                packed.BLOCK = way
            row = PackedLayout(borders)
            for _ in range(10):
                if way == "by sequence":
                    keys = attention.whole_keys(*tensors[1:], row)
                    found = torch.cat(attention.at_once(tensors[0], keys, row, None, {}), dim=1).flatten(2)
                else:
                    found, _ = attention.varlen_attention(nn.Module(), *tensors, None, meet_packed=row)
                torch.autograd.grad(found, tensors, outer.view_as(found))
            if cuda:
                torch.cuda.synchronize()

        ways = ("by sequence", *(["kernel"] if cuda else [64, 96, 128, 256]))
        made.append((f"{length} tokens", {f"{way}": partial(go, way) for way in ways}))
    return made


def heads(_: str) -> Series:
    """Return for some numbers of tokens the ways through a trained head of SmolLM2's shape, forward and backward."""
    layer = nn.Linear(576, 49152, bias=False)
    made = []
    for count in (100, 300, 1000):
        hidden, targets = torch.randn(count, 576, requires_grad=True), torch.randint(0, 49152, (count,))

        def go(room: int, hidden: Tensor = hidden, targets: Tensor = targets, **how: bool) -> None:
            head.ROOM["cpu"] = room
            for _ in range(4):
                torch.autograd.grad(head.token_logps(hidden, layer, targets, **how).sum(), [hidden, layer.weight])

        ways = {f"2**{power} logits at a time": partial(go, 2**power) for power in (20, 22, 24)}
        ways |= {"all at a time": partial(go, 2**40), "2**22, made again": partial(go, 2**22, keep=False)}
        made.append((f"{count} tokens", ways))
    return made


def keeping(job: str) -> Series:
    """Return a step with the probabilities of a trained head kept for backward and made again."""
    policy, steps = prepared(job)
    go = passes(policy, steps)

    def run(keeps: bool) -> None:
        policy.stores_probabilities = keeps
        go()

    return [(job, {"kept": partial(run, True), "made again": partial(run, False)})]


def _with(most: int, go: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        lora.WIDE = most
        go()

    return run


def rounded(job: str) -> Series:
    """Return a step with products in f32 and with operands rounded to bf16, sums in f32."""
    go = passes(*prepared(job))

    def run(precision: str) -> None:
        torch.backends.mkldnn.matmul.fp32_precision = precision
        go()

    return [(job, {"f32": lambda: run("ieee"), "bf16 operands": lambda: run("bf16")})]


def split(_: str) -> Series:
    """Print the rate and the error of a product in three ways; the last takes x = high + low, both of bf16."""
    x, w = torch.randn(1036, 576), torch.randn(1536, 576)
    exact = x.double() @ w.double().T

    def halves(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        high = whole.bfloat16().float()
        return high, whole - high

    high_w, low_w = halves(w)

    def three() -> torch.Tensor:
        high, low = halves(x)
        return (high @ high_w.T).addmm_(high, low_w.T).addmm_(low, high_w.T)

    ways = {"f32": ("ieee", lambda: x @ w.T), "bf16 operands": ("bf16", lambda: x @ w.T), "three": ("bf16", three)}
    for name, (precision, product) in ways.items():
        torch.backends.mkldnn.matmul.fp32_precision = precision
        best = min(_seconds(product) for _ in range(50))
        error = float((product() - exact).abs().max() / exact.abs().max())
        print(f"{name}: {2e-9 * x.numel() * len(w) / best:.0f} GFLOP/s, error {error:.1e}", flush=True)
    return []


def products(_: str) -> Series:
    """Print the rates of what a layer computes forward and backward, of 1,036 tokens, by torch and by oneDNN."""
    onednn = torch.ops.mkldnn._linear_pointwise
    for size_in, size_out in ((576, 1536), (1536, 576), (576, 576), (576, 192)):
        x, w, dy = torch.randn(1036, size_in), torch.randn(size_out, size_in), torch.randn(1036, size_out)
        for name, left, right in (("y", x, w), ("dx", dy, w.T), ("dW", dy.T, x.T)):
            ways = {
                "torch": lambda left=left, right=right: left @ right.T,
                "oneDNN": lambda left=left, right=right: onednn(left, right, None, "none", [], ""),
            }
            best = {way: min(_seconds(product) for _ in range(50)) for way, product in ways.items()}
            rates = ", ".join(f"{way} {2e-9 * x.numel() * size_out / one:.0f}" for way, one in best.items())
            print(f"{size_in} to {size_out}, {name}: {rates} GFLOP/s", flush=True)
    return []


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    started = perf_counter()
    product()
    return perf_counter() - started


LEVERS: dict[str, Callable[[str], Series]] = {
    "step": as_it_is,
    "rows": in_passes,
    "wide": wide,
    "compile": compiled,
    "bf16": rounded,
    "split": split,
    "products": products,
    "head": heads,
    "keep": keeping,
    "attention": attending,
}


if __name__ == "__main__":
    main()
