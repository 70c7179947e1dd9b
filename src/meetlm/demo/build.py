"""Builds the demo's preference data: our prompts, replies of SmolLM2, scored by the rule in ``rule.py``.

``meet demo-data`` runs it. Of several replies to a prompt the best is paired with the worst, and the second best with
the second worst, as ``chosen`` and ``rejected``; the others are left out. Whole topics are held out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.build import build_control, parse_control
from meetlm.data.example import Prompt, Turn
from meetlm.data.levels import PAIR_LEVELS
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.demo.rule import first_person
from meetlm.generation.decoding import Branch
from meetlm.generation.session import Request, Session
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import EMBEDDED, ModelSettings, load_lm
from meetlm.policy.policy import Policy

SMOLLM2 = ModelSettings(name=EMBEDDED)
HELD_OUT_TOPICS = 5
REPLIES = 6
SAMPLING = Sampling(max_new_tokens=40, temperature=1.0, top_p=0.95)
MIN_GAP = 0.04
"""Minimum difference between the scores of a pair: about one first-person word in 25."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A reply and its score by the rule."""

    text: str
    score: float


def base_session(model: ModelSettings = SMOLLM2, spec: FormatSpec | None = None) -> Session:
    """Return a generation session with a language model without a control.

    Args:
        model: The language model.
        spec: Prompt format, such as that of a run; by default the chat template without a system message.
    """
    lm, tokenizer = load_lm(model)
    prompt_format = pin_format(tokenizer, system="none") if spec is None else PromptFormat(tokenizer, spec)
    control = build_control(parse_control({"kind": "none"}), PAIR_LEVELS.best_only, lm, prompt_format.tokenize, seed=0)
    return Session(Policy(lm, control), prompt_format, batch_size=96)


def read_prompts() -> list[dict[str, str]]:
    """Return the package's prompts: rows of ``topic`` and ``prompt``."""
    lines = (resources.files("meetlm.demo") / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def sample(
    session: Session,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    replies: int,
    seed: int,
    reporter: Reporter = SILENT,
) -> list[list[str]]:
    """Return ``replies`` replies of the base model to each prompt."""
    ids = [session.format.prompt_ids(Prompt((Turn("user", prompt),))) for prompt in prompts]
    requests = [
        Request((Branch(tuple(row), (1.0,)),), sampling, seed, number * replies + n)
        for number, row in enumerate(ids)
        for n in range(replies)
    ]
    completions = session.complete(requests, reporter=reporter)
    texts = [completion.text for completion in completions]
    return [texts[i : i + replies] for i in range(0, len(texts), replies)]


def tidy(reply: str) -> str | None:
    """Return a reply in ASCII and without its cut-off last sentence, or ``None`` where no proper text is left."""
    for fancy, plain in (
        ("\u2019", "'"),
        ("\u2018", "'"),
        ("\u201c", '"'),
        ("\u201d", '"'),
        ("\u2014", "-"),
        ("\u2013", "-"),
    ):
        reply = reply.replace(fancy, plain)
    whole = re.match(r"(?s).*[.!?][\"')]*(?=\s|$)", reply.strip())
    text = whole.group(0).strip() if whole else ""
    proper = text.isascii() and len(text.split()) >= 6 and not re.search(r"```|[{}<>\[\]\\|=_]|\n\s*\n", text)
    return text if proper else None


def pairs_of(replies: Sequence[str]) -> list[tuple[Scored, Scored]]:
    """Return (chosen, rejected): best and worst, then second best and second worst, where scores differ enough."""
    texts = sorted({text for reply in replies if (text := tidy(reply))})
    ranked = sorted((Scored(text, first_person(text)) for text in texts), key=lambda r: -r.score)
    pairs = [(ranked[n], ranked[-1 - n]) for n in range(min(2, len(ranked) // 2))]
    return [(high, low) for high, low in pairs if high.score - low.score >= MIN_GAP]


def build(folder: Path, *, seed: int = 0, reporter: Reporter = SILENT) -> dict[str, int]:
    """Sample, score, and write ``train.jsonl`` and ``test.jsonl`` (TRL's conversational preference format).

    Args:
        folder: Folder of the files.
        seed: Seed of sampling, held-out topics and order.
        reporter: Shows the progress of sampling.

    Returns:
        The number of rows of each file.
    """
    rows = read_prompts()
    order = random.Random(seed)
    topics = sorted({row["topic"] for row in rows})
    held_out = set(order.sample(topics, HELD_OUT_TOPICS))
    replies = sample(
        base_session(),
        [row["prompt"] for row in rows],
        SAMPLING,
        replies=REPLIES,
        seed=seed,
        reporter=reporter,
    )
    counts = {}
    for name in ("train", "test"):
        ranks: list[list[dict[str, Any]]] = [[], []]
        for row, texts in zip(rows, replies, strict=True):
            if (row["topic"] in held_out) == (name == "test"):
                for rank, (chosen, rejected) in enumerate(pairs_of(texts)):
                    ranks[rank].append(_row(row, chosen, rejected))
        for group in ranks:
            order.shuffle(group)
        lines = ranks[0] + (ranks[1] if name == "train" else [])  # one held-out pair per prompt
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        counts[name] = len(lines)
    return counts


def _row(row: dict[str, str], chosen: Scored, rejected: Scored) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": chosen.text}],
        "rejected": [{"role": "assistant", "content": rejected.text}],
        "topic": row["topic"],
        "score_chosen": round(chosen.score, 4),
        "score_rejected": round(rejected.score, 4),
    }
