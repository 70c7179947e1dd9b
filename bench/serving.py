"""Latency and speed of `meet serve` beside `transformers serve` and llama.cpp's server.

All servers run at once, and one is loaded at a time, in turns: in each round every server gets the same requests, all
sent together, in alternating order. The model is a run of SmolLM2 that is trained first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
from quiet import LIMIT, Busy, refuse_busy_machine
from report import machine, table
from results import spread
from served import process, program, prompts, train_run
from tokenizers import Tokenizer

from meetlm.config.process import SPINCOUNT

HERE = Path(__file__).parent
REQUESTS, MAX_TOKENS, ROUNDS = 8, 32, 4
LEVELS: list[Any] = ["good", "bad", {"good": 1.3, "bad": -0.3}, {"good": 0.5, "bad": 0.5}]
COLUMNS = (
    "server",
    "tokens per second",
    "first token, p50 (s)",
    "first token, p99 (s)",
    "request, p50 (s)",
    "request, p99 (s)",
)


@dataclass(frozen=True)
class Load:
    """A server under one kind of requests.

    Attributes:
        title: Name in the table.
        address: Where the server is.
        bodies: What is sent besides the messages, in turns.
        rounds: Seconds to the first text and to the end, and tokens, of each request of each counted round, and the
            seconds of the round.
    """

    title: str
    address: str
    bodies: list[dict[str, Any]]
    rounds: list[tuple[list[tuple[float, float, int]], float]] = field(default_factory=list)

    @property
    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table: medians over rounds with the lowest and the highest; p99 over all requests."""
        requests = [request for sent, _ in self.rounds for request in sent]
        cells = [spread([sum(tokens for *_, tokens in sent) / seconds for sent, seconds in self.rounds])]
        for k in (0, 1):
            cells.append(spread([median(request[k] for request in sent) for sent, _ in self.rounds]))
            cells.append(f"{quantiles([request[k] for request in requests], n=100, method='inclusive')[98]:.2f}")
        return self.title, *cells


async def send(client: httpx2.AsyncClient, load: Load, prompt: str, number: int) -> tuple[float, float, str]:
    """Stream one reply; return the seconds to its first text and to its end, and the text."""
    shared = {"max_tokens": MAX_TOKENS, "temperature": 0, "stream": True}
    body = {"messages": [{"role": "user", "content": prompt}], **shared, **load.bodies[number % len(load.bodies)]}
    start, first, text = time.perf_counter(), None, ""
    async with client.stream("POST", f"{load.address}/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"{load.title}: {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: ")).get("choices", ()):
                    piece = choice["delta"].get("content") or ""
                    first = time.perf_counter() - start if first is None and piece else first
                    text += piece
    end = time.perf_counter() - start
    return end if first is None else first, end, text


async def run_round(load: Load, texts: list[str], tokenizer: Tokenizer) -> None:
    """Send all requests of a round at once, and record them."""
    async with httpx2.AsyncClient(timeout=600, limits=httpx2.Limits(max_connections=None)) as client:
        start = time.perf_counter()
        replies = await asyncio.gather(*(send(client, load, text, k) for k, text in enumerate(texts)))
        seconds = time.perf_counter() - start
    tokens = [len(tokenizer.encode(reply[2], add_special_tokens=False).ids) for reply in replies]
    load.rounds.append(([(first, end, n) for (first, end, _), n in zip(replies, tokens, strict=True)], seconds))


def export(run: Path, to: str, converter: Path | None, *options: str) -> Path:
    """Export the run once and return the folder."""
    out = run.parent / f"{to}{''.join(options)}"
    if not out.is_dir():
        command = [program("meet"), "export", run, "--to", to, "--out", out, "--limit", "1", *options]
        command += ["--converter", converter] if converter else []
        subprocess.run(list(map(str, command)), check=True)
    return out


def loads(run: Path, args: argparse.Namespace, stack: ExitStack) -> list[Load]:
    """Start the servers and return what is measured."""

    def start(*command: object, health: str = "/health") -> str:
        return stack.enter_context(process(command, health))[0]

    meet = start(program("meet"), "serve", run, "--name", "run", "--port", "{port}")
    merged = export(run, "merged", None, "--level", "good")
    theirs = start(
        program("transformers"), "serve", merged, "--port", "{port}", "--device", "cpu", "--dtype", "float32"
    )
    results = [
        Load("meet serve, mixed levels", meet, [{"model": "run", "level": level} for level in LEVELS]),
        Load("meet serve, one level", meet, [{"model": "run", "level": "good"}]),
        Load("transformers serve, one level", theirs, [{"model": str(merged)}]),
    ]
    for outtype in ("f32", "f16"):
        gguf = export(run, "gguf", args.converter, "--outtype", outtype)
        address = start(sys.executable, HERE / "llama_process.py", gguf, outtype, "{port}")
        for title, levels in (("mixed levels", LEVELS), ("one level", LEVELS[:1])):
            bodies = [{"model": "run", **lora(level, gguf)} for level in levels]
            results.append(Load(f"llama.cpp in {outtype}, {title}", address, bodies))
    return results


def lora(level: Any, gguf: Path) -> Mapping[str, Any]:
    """Return the field of a request to llama.cpp's server that selects a level."""
    from meetlm.llama_cpp import payload

    return payload(level, gguf)


def markdown(measured: list[Load], others: list[float], args: argparse.Namespace) -> str:
    """Return the report."""
    busy = max(others)
    quiet = "" if busy <= LIMIT else ": **the machine was not quiet**"
    num_requests = REQUESTS * (args.rounds - 1)
    return "\n".join(
        [
            "# meet serve beside transformers serve and llama.cpp's server",
            "",
            f"Written by `python bench/serving.py --rounds {args.rounds} --converter DIR`.",
            "",
            *machine(("torch", "transformers", "xllamacpp", "meetlm")),
            f"- A run of SmolLM2-135M-Instruct, two levels (LoRA of rank 4); {args.threads} threads per server. "
            "meet serve and transformers serve compute in f32; llama.cpp has weights, keys and values in f32, or all "
            "of them in f16. transformers serve has one level merged into the weights and answers one request after "
            "another (without --continuous-batching, whose cache took all memory of 24 GiB). llama.cpp has 8 slots; it "
            "batches requests of equal LoRA scales only, so requests at mixed levels wait for each other.",
            f"- {REQUESTS} streamed requests sent at once, greedy, up to {MAX_TOKENS} tokens. Prompts are the same "
            "for all servers in a round and new in each round. Mixed levels: good, bad, 1.3·good − 0.3·bad, "
            f"0.5·good + 0.5·bad. {args.rounds} rounds in turns, the first not counted. Other processes used up to "
            f"{busy:.0%} of a core{quiet}.",
            "- Medians over rounds with [the lowest, the highest]; p99 is over the requests of all counted rounds "
            f"({num_requests} per row), so close to the maximum. Tokens are counted by the run's tokenizer.",
            "",
            *table(COLUMNS, [load.cells for load in measured]),
        ]
    )


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--converter", type=Path, required=True, help="folder of llama.cpp's source (docs/use.md)")
    parser.add_argument("--folder", type=Path, default=Path("runs/served"), help="where the run and its exports are")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the first is warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "RESULTS-serving.md")
    parser.add_argument("--force", action="store_true", help="start on a busy machine; nothing is written")
    args = parser.parse_args()
    if not args.force:
        refuse_busy_machine()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    os.environ["GOMP_SPINCOUNT"] = SPINCOUNT
    run = train_run(args.folder)
    tokenizer = Tokenizer.from_file(str(run / "model" / "tokenizer.json"))
    texts, others = prompts(args.rounds * REQUESTS), []
    with ExitStack() as stack:
        measured = loads(run, args, stack)
        for number in range(args.rounds):
            busy = Busy()
            for load in measured if number % 2 == 0 else reversed(measured):
                asyncio.run(run_round(load, texts[number * REQUESTS : (number + 1) * REQUESTS], tokenizer))
                print(f"round {number}, {load.title}: {load.rounds[-1][1]:.1f} s", file=sys.stderr, flush=True)
            others.append(busy.other_load())
    for load in measured:
        del load.rounds[0]
    text = markdown(measured, others[1:], args)
    print(text)
    if not args.force:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
