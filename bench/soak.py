"""Soak test of `meet serve`: mixed load for half an hour, then: is memory flat, and has every request its answer?

Workers send requests without a pause: levels, mixes, guidance, streams, several completions, scores, feedback, requests
that the server must refuse, and clients that leave early. More completions are asked for than the queue holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from statistics import linear_regression, median
from typing import Any

import httpx2
import psutil
from served import process, program, prompts, train_run

WORKERS, BATCH_SIZE, QUEUE, MAX_TOKENS = 14, 8, 12, 32
LEVELS: list[Any] = ["good", "bad", 0.3, 1.2, {"good": 1.5, "bad": -0.5}, {"bad": 0.7}]
REFUSED = (
    {"max_tokens": MAX_TOKENS + 1},
    {"level": "ugly"},
    {"n": 99},
    {"temperatur": 1},
    {"level": {"good": 1e9}},
    {"messages": []},
    {"messages": [{"role": "user", "content": "rice " * 30_000}]},
)
"""Changes of a request that make it wrong."""


class Soak:
    """Sends requests and counts what becomes of them.

    Attributes:
        counts: Number of requests by kind and outcome: answered, refused (as expected), left (by the client), lost.
        tokens: Number of generated tokens that arrived.
        losses: What the lost requests got instead of an answer.
    """

    def __init__(self, address: str, deadline: float) -> None:
        self._address, self._deadline = address, deadline
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tokens = 0
        self.losses: list[str] = []

    async def run(self) -> None:
        """Send requests until the deadline."""
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=self._address, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._work(client, Random(number)) for number in range(WORKERS)))

    async def _work(self, client: httpx2.AsyncClient, random: Random) -> None:
        kinds = {"whole": 5, "stream": 6, "leave stream": 2, "leave whole": 1, "wrong": 2, "score": 1, "feedback": 1}
        while time.monotonic() < self._deadline:
            kind = random.choices(list(kinds), list(kinds.values()))[0]
            body = request_body(random)
            try:
                outcome = await self._send(client, kind, body, random)
            except (httpx2.HTTPError, KeyError, ValueError) as error:
                outcome = "lost"
                self.losses.append(f"{kind}: {type(error).__name__}: {error}; {json.dumps(body)[:300]}")
            self.counts[kind, outcome] += 1
            if outcome == "refused":
                await asyncio.sleep(0.5)

    async def _send(self, client: httpx2.AsyncClient, kind: str, body: dict[str, Any], random: Random) -> str:
        path = "/v1/chat/completions"
        if "stream" in kind:
            num_chunks = random.randrange(1, 6) if kind == "leave stream" else None
            return await self._stream(client, path, {**body, "stream": True}, num_chunks)
        if kind == "leave whole":
            try:
                response = await client.post(path, json=body, timeout=random.uniform(0.01, 0.3))
            except httpx2.ReadTimeout:
                return "left"
        elif kind == "wrong":
            response = await client.post(path, json=body | random.choice(REFUSED))
            return "refused" if _is_error(response, 400, 429) else self._lose(kind, response.text)
        elif kind == "score":
            body = {"messages": body["messages"], "completion": "It was lovely, thanks!"}
            response = await client.post("/v1/score", json=body)
            return self._judge(response, len(response.json().get("scores", ())) == 1)
        elif kind == "feedback":
            body = {"messages": body["messages"], "completion": "It was lovely, thanks!", "label": True}
            identifier = (await client.post("/v1/feedback", json=body)).json()["id"]
            response = await client.delete(f"/v1/feedback/{identifier}")
            return self._judge(response, response.status_code == 200)
        else:
            response = await client.post(path, json=body)
        choices = response.json().get("choices", ())
        self.tokens += response.json().get("usage", {}).get("completion_tokens", 0)
        is_whole = len(choices) == body["n"] and all(c["finish_reason"] in ("stop", "length") for c in choices)
        return self._judge(response, is_whole)

    async def _stream(self, client: httpx2.AsyncClient, path: str, body: dict[str, Any], num_chunks: int | None) -> str:
        lines = []
        async with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return self._judge(response, False)
            async for line in response.aiter_lines():
                lines += [line] if line else []
                if len(lines) == num_chunks:
                    return "left"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        ends = [choice["index"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
        self.tokens += sum(bool(c.get("delta", {}).get("content")) for chunk in chunks for c in chunk["choices"])
        is_whole = lines[-1:] == ["data: [DONE]"] and sorted(ends) == list(range(body["n"]))
        return "answered" if is_whole else self._lose("stream", f"{ends} {lines[-1:]}")

    def _judge(self, response: httpx2.Response, is_whole: bool) -> str:
        if response.status_code == 200 and is_whole:
            return "answered"
        return "refused" if _is_error(response, 429) else self._lose(str(response.status_code), response.text)

    def _lose(self, kind: str, text: str) -> str:
        self.losses.append(f"{kind}: {text[:300]}")
        return "lost"


def request_body(random: Random) -> dict[str, Any]:
    """Return a random request for chat completions."""
    guidance = random.choice([0, 0, 0, 1.5])
    return {
        "model": "run",
        "messages": [{"role": "user", "content": random.choice(prompts(48))}],
        "level": random.choice(LEVELS),
        "n": random.choice([1, 1, 1, 2, 3]),
        "max_tokens": random.randrange(1, MAX_TOKENS + 1),
        "temperature": random.choice([0, 1, 0.7]),
        "top_p": random.choice([1.0, 0.9]),
        **({"guidance": guidance, "against": 0.5} if guidance else {}),
        **({"stop": ["\n", "!"]} if random.random() < 0.2 else {}),
        **({"logprobs": True, "top_logprobs": 3} if random.random() < 0.2 else {}),
    }


def _is_error(response: httpx2.Response, *statuses: int) -> bool:
    return response.status_code in statuses and "message" in response.json()["error"]


def growth(samples: list[tuple[float, float]]) -> float:
    """Return the relative growth of memory over the last two thirds of the samples, by a straight line.

    Args:
        samples: Seconds and megabytes.
    """
    late = samples[len(samples) // 3 :]
    seconds, megabytes = zip(*late, strict=True)
    slope = linear_regression(seconds, megabytes).slope
    return slope * (seconds[-1] - seconds[0]) / median(megabytes)


async def soak(address: str, pid: int, minutes: float) -> tuple[Soak, list[tuple[float, float]]]:
    """Load a server; return the counts, and its resident memory over time in seconds and megabytes."""
    server, start = psutil.Process(pid), time.monotonic()
    load = Soak(address, start + 60 * minutes)
    samples: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            samples.append((time.monotonic() - start, server.memory_info().rss / 1e6))
            if len(samples) % 30 == 1:
                print(
                    f"{samples[-1][0]:.0f} s: {samples[-1][1]:.0f} MB, {dict(load.counts)}", file=sys.stderr, flush=True
                )
            await asyncio.sleep(max(0.25, minutes / 10))

    watching = asyncio.create_task(watch())
    await load.run()
    watching.cancel()
    async with httpx2.AsyncClient(base_url=address) as client:
        for _ in range(100):
            lines = (await client.get("/metrics")).text.splitlines()
            if "meet_active 0.0" in lines and "meet_running 0.0" in lines:
                return load, samples
            await asyncio.sleep(0.1)
    raise SystemExit("completions are still in the batch 10 seconds after the last request")


def report(load: Soak, samples: list[tuple[float, float]], minutes: float, limit: float) -> str:
    """Return the results in Markdown."""
    outcomes = ("answered", "refused", "left", "lost")
    kinds = sorted({kind for kind, _ in load.counts})
    rows = [(kind, *(load.counts[kind, outcome] for outcome in outcomes)) for kind in kinds]
    rows.append(("all", *(sum(row[k] for row in rows) for k in range(1, 5))))
    points = [samples[round(k * (len(samples) - 1) / 6)] for k in range(7)]
    return "\n".join(
        [
            "# Soak test of meet serve",
            "",
            f"Written by `python bench/soak.py --minutes {minutes:g}`: {WORKERS} clients without a pause, batches of "
            f"at most {BATCH_SIZE} rows, queue of {QUEUE} completions. {os.cpu_count()} cores, which other programs "
            "used too.",
            "",
            "Refused: with the status that the request deserves, 400 for a wrong one, 429 where the queue is full. "
            "Left: the client closed the connection before the end. Lost: anything else.",
            "",
            f"| requests | {' | '.join(outcomes)} |",
            "| --- | --- | --- | --- | --- |",
            *(f"| {' | '.join(f'{cell:,}' if isinstance(cell, int) else cell for cell in row)} |" for row in rows),
            "",
            "Resident memory of the server: "
            + ", ".join(f"{megabytes:,.0f} MB after {seconds / 60:.1f} min" for seconds, megabytes in points)
            + f". Growth over the last two thirds, by a straight line: {growth(samples):+.2%} (limit {limit:.0%}).",
            "",
        ]
    )


def main() -> None:
    """Serve a run, load the server, and print or write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument(
        "--limit",
        type=float,
        default=0.02,
        help="largest growth of the server's memory over the last two thirds of the time, by a straight line",
    )
    parser.add_argument("--run", type=Path, help="a run with the levels bad and good; by default SmolLM2 is trained")
    parser.add_argument("--folder", type=Path, default=Path("runs/served"), help="where that run is, or is written")
    parser.add_argument("--out", type=Path, help="write the results to this file, such as bench/RESULTS-soak.md")
    args = parser.parse_args()
    run = args.run or train_run(args.folder)
    command = [program("meet"), "serve", run, "--name", "run", "--port", "{port}", "--max-tokens", MAX_TOKENS]
    command += ["--batch-size", BATCH_SIZE, "--queue", QUEUE]
    with process(command, "/health") as (address, pid):
        load, samples = asyncio.run(soak(address, pid, args.minutes))
    text = report(load, samples, args.minutes, args.limit)
    print(text)
    if args.out is not None:
        args.out.write_text(text)
    problems = load.losses[:20]
    if growth(samples) > args.limit:
        problems.append(f"memory grew by {growth(samples):.2%}, more than {args.limit:.0%}")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
