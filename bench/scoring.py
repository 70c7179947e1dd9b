"""Scoring with a reward model: our scorer beside transformers' pipeline at batch 8 in file order, on the same 800 rows.

400 HH pairs, both replies, as one text each, a fifth of them per turn; the model is SmolLM2 with a random head, the
same for both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gate import Gate, own_memory
from rows import Rows
from transformers import AutoModelForSequenceClassification, PreTrainedModel, pipeline

from meetlm.data.example import Prompt
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import RewardSettings

PAIRS = 400
BATCH = 8
"""Rows that the pipeline scores at once."""
TURN_PAIRS = 80
"""Pairs per turn."""

Scores = list[float]
Program = Callable[[], Scores]


def texts(rows: Rows, pairs: range) -> tuple[list[Prompt], list[str]]:
    """Return prompts and completions of some pairs, chosen and rejected side by side, in the order of the file."""
    taken = [rows.examples[number % len(rows.examples)] for number in pairs]
    both = [(example.prompt, reply) for example in taken for reply in example.best_and_worst]
    return [prompt for prompt, _ in both], [reply.content for _, reply in both]


def classifier(rows: Rows) -> PreTrainedModel:
    """Return the reward model, f32; its head is the same at every call."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(rows.folder, num_labels=1, dtype=torch.float32)
    own_memory([model])
    return model.eval()


def ours(rows: Rows, pairs: range, model: PreTrainedModel) -> Program:
    """Return a function that scores both replies of some pairs with meetlm."""
    settings = RewardSettings(model=rows.folder, input="text", device="cpu")
    scorer = RewardModel(model, rows.tokenizer, settings)
    prompts, completions = texts(rows, pairs)

    def score() -> Scores:
        rewards = scorer.score(scorer.tokenize(prompts, completions))
        return [reward for reward in rewards if reward is not None]

    return score


def peer(rows: Rows, pairs: range, model: PreTrainedModel) -> Program:
    """Return a function that scores both replies of some pairs with transformers' pipeline."""
    classify = pipeline(
        "text-classification",
        model=model,
        tokenizer=rows.tokenizer,
        function_to_apply="none",
        batch_size=BATCH,
        device="cpu",
    )
    prompts, completions = texts(rows, pairs)
    joined = [prompt.text() + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return lambda: [result["score"] for result in classify(joined)]


PROGRAMS = {"ours": ours, "transformers": peer}


def serve(program: str, rows: Rows, gate: Gate) -> None:
    """Score the pairs of the next turn for each request: each turn once in the counted rounds."""
    shares = [range(start, start + TURN_PAIRS) for start in range(0, PAIRS, TURN_PAIRS)]
    if rows.scale.max_length < 512:  # a trial of the benchmark itself
        shares = [range(4)]
    model = classifier(rows)
    programs = [(PROGRAMS[program](rows, share, model), num_tokens(rows, share)) for share in shares]
    gate.ready("step", settings={"batch_size": BATCH, "rows per turn": 2 * len(shares[0])}, adapter={})
    turn = 0
    while True:
        score, tokens = programs[max(0, turn - 1) % len(programs)]  # the first turn is warm-up
        gate.done(tokens=tokens, scores=score())
        turn += 1


def num_tokens(rows: Rows, pairs: range) -> int:
    """Return the tokens of both replies of some pairs with their prompts, no padding."""
    prompts, completions = texts(rows, pairs)
    joined = [prompt.text() + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return sum(map(len, rows.tokenizer(joined)["input_ids"]))
