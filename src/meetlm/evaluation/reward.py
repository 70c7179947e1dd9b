"""Scores completions with a reward model: any sequence classifier of transformers with one label (paper, 4.3).

The paper's reward model is ``OpenAssistant/reward-model-deberta-v3-large-v2``, which reads question and answer as two
sequences. A checkpoint that ``meet reward train`` wrote is read in the form it was trained in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.world import World
from meetlm.controls.kernels.fused_linear import use_fast_products
from meetlm.data.example import Prompt
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward_input import FORM_KEY, RewardInput, TokenizedRow, choose_form
from meetlm.evaluation.settings import RewardSettings
from meetlm.policy.loading import load_tokenizer, loading_errors, num_positions

UNLIMITED = 10**9
"""Tokenizers without a maximum length have a larger ``model_max_length`` than this."""


class RewardModel:
    """A reward model, ready to score: f32 on a CPU, bf16 autocast on CUDA.

    Args:
        model: A sequence classifier with one label.
        tokenizer: The tokenizer of ``model``.
        settings: Settings of its input.

    Attributes:
        form: ``pair``, ``chat`` or ``text``.
        form_reason: Why this form was chosen.
        max_tokens: Maximum number of tokens per row; ``None`` if there is no limit.
        precision: Data type and device of the scores: scores in another precision differ slightly.

    Raises:
        ConfigError: The model has more than one label, or its form cannot be determined.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: RewardSettings) -> None:
        if model.config.num_labels != 1:
            raise ConfigError(
                f"{settings.model!r} has {model.config.num_labels} labels; expected a reward model with one label "
                "(num_labels: 1)"
            )
        model.train(False)
        use_fast_products(model)
        self.settings, self.tokenizer, self.model = settings, tokenizer, model
        self.form, self.form_reason = choose_form(tokenizer, getattr(model.config, FORM_KEY, None), settings.input)
        limits = (settings.max_length, _max_positions(model), min(tokenizer.model_max_length, UNLIMITED))
        smallest = min(limit for limit in limits if limit is not None)
        self.max_tokens = smallest if smallest < UNLIMITED else None
        self._input = RewardInput(tokenizer, self.form, self.max_tokens, eos=settings.eos)

    @property
    def precision(self) -> str:
        """Return the data type and the device that scores are computed in."""
        device = self.model.device.type
        return f"{'bfloat16' if device == 'cuda' else self.model.dtype} on {device}"

    @classmethod
    def load(cls, settings: RewardSettings) -> RewardModel:
        """Return the reward model that ``settings`` name.

        Raises:
            ConfigError: It cannot be loaded, is not a reward model, its form cannot be determined, or there is no such
                device.
        """
        has_cuda = torch.cuda.is_available()
        if settings.device == "cuda" and not has_cuda:
            raise ConfigError("reward.device is 'cuda', and torch finds no CUDA device here; set it to 'cpu' or 'auto'")
        with loading_errors(settings.model, "reward model") as source:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                **source, dtype=torch.float32, output_loading_info=True
            )
        if missing := sorted(info["missing_keys"]):
            raise ConfigError(
                f"{settings.model!r} is not a reward model: it has no weights for {', '.join(missing[:3])}; "
                "train one from a language model with `meet reward train`"
            )
        nn.Module.to(model, torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu"))
        return cls(model, load_tokenizer(settings.model), settings)

    def tokenize(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[TokenizedRow | str]:
        """Return the token ids of each row, or the reason in one line why the row cannot be scored."""
        return self._input.encode(prompts, completions)

    def score(self, rows: Sequence[TokenizedRow | str], *, reporter: Reporter = SILENT) -> Column:
        """Return the reward of each row, in order.

        Args:
            rows: As :meth:`tokenize` returns them.
            reporter: Shows the progress.

        Returns:
            Rewards; ``None`` for a row that is a reason, or whose score is NaN or infinite.
        """
        rewards: Column = [None] * len(rows)
        world = World.current()
        usable = [(number, row) for number, row in enumerate(rows) if isinstance(row, TokenizedRow)]
        with reporter.progress("reward model", total=len(usable), unit="row") as progress:
            batches = list(batches_by_length([row for _, row in usable], self.settings.batch_tokens))
            scores: dict[int, list[float]] = {}
            for number, batch in world.share(batches).items():
                scores[number] = self._forward([usable[index][1] for index in batch]).tolist()
                progress.advance(sum(map(len, batches[number : number + world.size])))
        for batch, batch_scores in zip(batches, world.merge(scores), strict=True):
            for index, score in zip(batch, batch_scores, strict=True):
                rewards[usable[index][0]] = score if math.isfinite(score) else None
        return rewards

    def problems(
        self, rows: Sequence[TokenizedRow | str], rewards: Sequence[float | None], names: Sequence[str]
    ) -> list[Problem]:
        """Return the rows that have no reward or were truncated, by reason.

        Args:
            rows: As :meth:`tokenize` returns them.
            rewards: As :meth:`score` returns them.
            names: How problems name each row, such as ``file:line``.
        """
        names_by_reason: dict[str, list[str]] = {}
        for row, reward, name in zip(rows, rewards, names, strict=True):
            if reward is None:
                reason = row if isinstance(row, str) else "the reward model's score is NaN or infinite"
                names_by_reason.setdefault(f"has no reward: {reason}", []).append(name)
        removed = {
            name: row.num_removed
            for row, name in zip(rows, names, strict=True)
            if isinstance(row, TokenizedRow) and row.num_removed
        }
        if removed:
            reason = f"is longer than the reward model's maximum of {self.max_tokens} tokens"
            cut = f"{sum(removed.values())} tokens were removed, the oldest of the prompt first"
            names_by_reason[f"{reason}; {cut}"] = list(removed)
        return [Problem(f"a completion {reason}", group) for reason, group in names_by_reason.items()]

    def _forward(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the scores [B] f32, on the CPU, of rows padded on the right."""
        config = self.model.config.get_text_config()
        # A decoder takes the score at the last token that is not padding. Without a padding id in its config, use an id
        # that no row ends with, so that every row is scored at its last token, as without padding.
        pad_id = config.pad_token_id
        last_ids = {row.ids[-1] for row in rows}
        used_pad_id = next(n for n in range(len(last_ids) + 1) if n not in last_ids) if pad_id is None else pad_id
        inputs = {
            "input_ids": _pad([row.ids for row in rows], used_pad_id),
            "attention_mask": _pad([(1,) * len(row.ids) for row in rows], 0),
        }
        if rows[0].type_ids is not None:
            inputs["token_type_ids"] = _pad([row.type_ids or () for row in rows], 0)
        device = self.model.device
        config.pad_token_id = used_pad_id
        try:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
                logits: Tensor = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        finally:
            config.pad_token_id = pad_id
        return logits[:, 0].float().cpu()


def batches_by_length(rows: Sequence[TokenizedRow], max_tokens: int) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, longest first, at most ``max_tokens`` per batch with padding."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -len(rows[index].ids)):
        if batch and (len(batch) + 1) * len(rows[batch[0]].ids) > max_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _max_positions(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens per row; RoBERTa-like models count positions from after their padding id."""
    for name, module in model.named_modules():
        is_learned = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_learned and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return int(module.num_embeddings - module.padding_idx - 1)
    return num_positions(model)
