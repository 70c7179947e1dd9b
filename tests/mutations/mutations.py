"""Deliberate breaks of the code, each of which the tests have to notice.

When a change moves or rewrites the code that a mutation breaks, write the same break for the new code: the purpose
stays, ``file``, ``old``, ``new`` and ``tests`` follow the code.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One deliberate break.

    Attributes:
        name: Identifies it.
        why: What the break does to a user.
        file: The file in ``src/meetlm`` that it changes.
        old: Text that occurs exactly once in the file.
        new: What replaces it.
        tests: Files in ``tests`` (or pytest ids) of which at least one test must fail.
    """

    name: str
    why: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    Mutation(
        "loss-mask-shifted",
        "Each position is trained to predict its own token, not the next one.",
        "data/batch.py",
        "        targets[span.start - 1 : span.end - 1] = sequence.ids[span.start : span.end]\n",
        "        targets[span.start - 1 : span.end - 1] = sequence.ids[span.start - 1 : span.end - 1]\n",
        ("test_encoding.py", "test_packing.py"),
    ),
    Mutation(
        "level-weights-reversed",
        "In training, good replies are trained under the bad level and bad ones under the good level.",
        "data/batch.py",
        "weights = torch.tensor([span.weights], dtype",
        "weights = torch.tensor([span.weights[::-1]], dtype",
        ("test_encoding.py", "test_controls.py", "test_packing.py"),
    ),
    Mutation(
        "scores-upside-down",
        "Replies with the lowest scores are trained at the best level.",
        "data/schemes.py",
        "[bisect_right(self.thresholds, _number(value))",
        "[len(self.thresholds) - bisect_right(self.thresholds, _number(value))",
        ("data/test_feedback.py",),
    ),
    Mutation(
        "prompt-trained",
        "The loss includes the prompt's tokens.",
        "data/encoding.py",
        "        return Encoded.of_one((*opened, *completion), len(opened), weights, self._scope)\n",
        "        return Encoded.of_one((*opened, *completion), 1, weights, self._scope)\n",
        ("test_encoding.py",),
    ),
    Mutation(
        "eos-missing",
        "Completions are not closed by EOS, so a trained model never ends a reply.",
        "data/prompt_format.py",
        "        return [*ids, self.tokenizer.eos_token_id]\n",
        "        return ids\n",
        ("test_encoding.py",),
    ),
    Mutation(
        "tie-counts-as-win",
        "Judgements that tie over both orders are counted as wins.",
        "evaluation/outcomes.py",
        '"tie" if abs(margin) <= largest_tie else "win" if margin > 0 else "lose"\n',
        '"win" if margin >= 0 else "lose"\n',
        ("test_judge.py",),
    ),
    Mutation(
        "resumed-order-wrong",
        "A resumed training begins its epoch again, so some pairs are trained on twice and others never.",
        "training/loop.py",
        "            data_seed=data_seed(seed),\n",
        "            data_seed=data_seed(seed),\n            ignore_data_skip=True,\n",
        ("test_resume.py",),
    ),
    Mutation(
        "dpo-sign-flipped",
        "DPO raises the rejected reply over the chosen one.",
        "objectives/dpo.py",
        "    rewards = beta * (logps - reference.to(logps.dtype))\n",
        "    rewards = -beta * (logps - reference.to(logps.dtype))\n",
        ("test_objectives.py",),
    ),
    Mutation(
        "lora-export-scale",
        "Exported LoRA adapters act with another strength than the run.",
        "controls/lora.py",
        '            "lora_alpha": num_levels * self.rank * self.scale,\n',
        '            "lora_alpha": num_levels * self.scale,\n',
        ("test_peft.py",),
    ),
    Mutation(
        "soft-prompt-behind-bos",
        "The control slot stands behind BOS, where PEFT and the trained runs do not have it.",
        "data/encoding.py",
        '        return [*slot, *ids] if self.placement == "first" else [*ids, *slot]\n',
        '        return [*ids[:1], *slot, *ids[1:]] if self.placement == "first" else [*ids, *slot]\n',
        ("test_encoding.py",),
    ),
    Mutation(
        "judge-order-not-swapped-back",
        "Verdicts on replies shown in swapped order are read as if the order were not swapped.",
        "evaluation/judge.py",
        "        judgement.outcome = _OUTCOMES[judgement.order][verdict] if verdict else None\n",
        "        judgement.outcome = _OUTCOMES[0][verdict] if verdict else None\n",
        ("test_judge.py",),
    ),
    # The following ten were proposed by someone who had read the code and not the tests.
    Mutation(
        "reference-cache-ignores-control-weights",
        "DPO after a trained control takes the cached reference log-probs of another run without a word.",
        "policy/reference.py",
        "        parts += [sha256_of(policy.control), policy.control.settings.model_dump_json()]\n",
        "        parts += [policy.control.settings.model_dump_json()]\n",
        ("test_reference.py",),
    ),
    Mutation(
        "lora-segments-unscaled",
        "With many levels times rank, LoRA is scaled by 1 instead of alpha / rank.",
        "controls/kernels/low_rank.py",
        "lengths.tolist(), weights.sum(dim=1, keepdim=True))",
        "lengths.tolist(), weights.sign().sum(dim=1, keepdim=True))",
        ("test_controls.py", "test_products.py"),
    ),
    Mutation(
        "prompt-shared-across-levels",
        "The rejected reply is computed behind the prompt as it is under the good level.",
        "data/batch.py",
        "        and (first.weights == second.weights or first.controlled_from == first.start - 1)\n",
        "",
        ("test_packing.py", "test_formats.py"),
    ),
    Mutation(
        "dpo-halves-instead-of-interleaved",
        "DPO compares replies of different prompts.",
        "objectives/dpo.py",
        "    chosen, rejected = rewards[0::2], rewards[1::2]\n",
        "    chosen, rejected = rewards.chunk(2)\n",
        ("test_objectives.py",),
    ),
    Mutation(
        "loss-normalised-by-micro-batch",
        "The number of pairs per forward pass changes the gradient.",
        "training/loop.py",
        "        return loss.total / num_items_in_batch\n",
        '        return loss.total / len(inputs["labels"])\n',
        ("test_training.py",),
    ),
    Mutation(
        "random-stream-by-place-in-list",
        "A resumed sampling gives other completions than one that was not interrupted.",
        "generation/session.py",
        "row_generator(request.seed, request.stream)",
        "row_generator(request.seed, number)",
        ("test_generation.py", "test_run.py"),
    ),
    Mutation(
        "judge-outcomes-of-first-system",
        "Every system gets the win rate of the first one.",
        "evaluation/evaluate.py",
        "by_cell.get((name, cell), (None, None))",
        "by_cell.get((self.compared[0], cell), (None, None))",
        ("test_evaluate.py",),
    ),
    Mutation(
        "stage-key-by-control-kind",
        "A sweep over a control's settings reports one training for all of them.",
        "run/stage_cache.py",
        '        "control": resolved["control"],\n',
        '        "control": config.control.kind,\n',
        ("test_stage_cache.py",),
    ),
    Mutation(
        "preset-by-control-overridden",
        "A soft prompt is trained at the learning rates of LoRA.",
        "recipes/config.py",
        '    base = merge(table[trained], table.get(f"{trained} ({kind})", {}))\n',
        '    base = merge(table.get(f"{trained} ({kind})", {}), table[trained])\n',
        ("test_recipes.py",),
    ),
    Mutation(
        "export-level-off-by-one",
        "The exported folder of the good level holds the weights of the bad one, and the other way round.",
        "export/peft.py",
        "control.levels.weights([index]), folder",
        "control.levels.weights([len(folders) - 1]), folder",
        ("test_peft.py",),
    ),
    Mutation(
        "parity-ignores-ids",
        "An export whose template renders other prompts than training passes the check.",
        "export/parity.py",
        "        if output.ids != case.ids:\n",
        "        if len(output.ids) < 1:\n",
        ("test_export.py::test_a_broken_export_fails",),
    ),
    Mutation(
        "merged-vectors-not-scaled",
        "A merged soft prompt is too strong for Gemma, whose embedding multiplies by the root of the hidden size.",
        "export/merged.py",
        "    table[rows] = vectors / embedding(rows)",
        "    table[rows] = vectors",
        ("test_export.py::test_merged",),
    ),
)
