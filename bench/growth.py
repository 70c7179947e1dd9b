"""Our program alone, on rows of any size: the cost per token of MEET's step 1. The driver asks for points by name.

The control is trained, the language model frozen. Ids are random: real rows do not have the lengths of the curves, and
the cost does not depend on the ids. The second half of a row is its completion, and trained.
"""

from __future__ import annotations

import copy
import gc
import json
from time import perf_counter
from typing import Any

import torch
from curves import CURVES, Curve, Point
from gate import Gate, own_memory
from rows import Rows
from torch import nn
from transformers import PreTrainedModel

from meetlm.data.batch import collate
from meetlm.data.encoding import Encoded
from meetlm.data.levels import LevelSpace
from meetlm.policy.policy import Policy

CHECKED = 16
"""Tokens of the longest sequence in the check that the model packs, kept short: it is not timed here."""
MAX_NORM = 1.0


def grow(rows: Rows, gate: Gate) -> None:
    """Take a step of the point that the driver names; only the points of one curve are in memory."""
    lm = rows.lm().eval()
    lm.requires_grad_(False)
    own_memory([lm])
    request = gate.ready("step")
    curve: Curve | None = None
    prepared: dict[str, Prepared] = {}
    while True:
        curve_name, name = json.loads(request)
        if curve is None or curve.name != curve_name:
            prepared.clear()
            gc.collect()  # a model and the hooks of its control hold each other
            curve = next(candidate for candidate in CURVES if candidate.name == curve_name)
            prepared = {point.name: Prepared(_shrunk(point, rows.scale.shrink), lm, rows) for point in curve.points}
        request = gate.done(**prepared[name].step())


class Prepared:
    """A point, ready to train.

    Args:
        point: The point.
        lm: The model; its frozen weights are shared, its modules are copied, as LoRA hooks them.
        rows: Builds the control.
    """

    def __init__(self, point: Point, lm: PreTrainedModel, rows: Rows) -> None:
        copied = copy.deepcopy(lm, memo={id(p): p for p in lm.parameters()})
        levels = LevelSpace.of_names(*(f"q{k}" for k in range(point.levels)))
        control = rows.control(copied, point.control, levels)
        self._policy = Policy(copied, control, longest=CHECKED).train()
        generator = torch.Generator().manual_seed(0)
        sequences = []
        for row in range(point.rows):
            weights = levels.weights([row % point.levels])
            slot = control.slot(weights)
            ids = torch.randint(0, rows.tokenizer.vocab_size, (point.length,), generator=generator).tolist()
            start = len(slot) + point.length // 2
            sequences.append(Encoded.of_one((*slot, *ids), start, weights))
        self._batch = collate(sequences, self._policy.layout)
        self._tokens = point.rows * point.length
        self._trained: list[nn.Parameter] = list(control.parameters())
        self._optimizer = torch.optim.AdamW(self._trained, lr=1e-3, weight_decay=0.0, fused=True)

    def step(self) -> dict[str, Any]:
        """Take one step; return its real tokens, the seconds of all of it and those of clipping and optimizer."""
        started = perf_counter()
        logps = self._policy(self._batch["blocks"], self._batch["num_completions"])
        (-logps.sums().sum() / len(self._batch["labels"])).backward()
        middle = perf_counter()
        nn.utils.clip_grad_norm_(self._trained, MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        ended = perf_counter()
        return {"tokens": self._tokens, "seconds": ended - started, "optimizer": ended - middle}


def _shrunk(point: Point, factor: int) -> Point:
    """Return the point with shorter rows, slots and ranks, to try the benchmark itself."""
    smaller = {key: max(1, value // factor) for key, value in point.control.items() if key in ("rank", "length")}
    control = {**point.control, **smaller}
    return Point(point.name, control, point.levels, max(2, point.length // factor), point.rows)
