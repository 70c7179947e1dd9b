"""The policy: one forward pass from a batch to the log-probs of its trained tokens.

It has no loss: objectives are functions of these log-probs. The LM head runs only at positions that predict a trained
token.

R rows, T tokens per row, K levels, N trained tokens, S completions (one per sequence, several in chains).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.world import World
from meetlm.controls.base import Control
from meetlm.controls.kernels.fused_linear import use_fast_products
from meetlm.data.batch import IGNORE, Block, Layout, collate, split_by_tokens
from meetlm.data.encoding import Encoded
from meetlm.policy.head import LogProbHead, is_linear_head
from meetlm.policy.loading import checkpoint_activations, checkpoints_activations
from meetlm.policy.packed_layout import PackedLayout, PromptKeys, PromptSplit
from meetlm.policy.packing import packed_arguments, try_packed_attention

SCORED_TOKENS = 2048
"""Largest number of tokens in one forward pass of :meth:`Policy.score`."""


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probs of trained tokens.

    Attributes:
        values: [N] f32, natural logarithm.
        completion: [N] int64, index of the completion of each token.
        num_completions: S.
    """

    values: Tensor
    completion: Tensor
    num_completions: int

    def sums(self) -> Tensor:
        """Return log p(y|x, level) of each completion in nats, [S]."""
        return self.values.new_zeros(self.num_completions).index_add(0, self.completion, self.values)

    def counts(self) -> Tensor:
        """Return the number of trained tokens of each completion, [S]."""
        return torch.bincount(self.completion, minlength=self.num_completions)


class Policy(nn.Module):
    """A language model with a control.

    Args:
        lm: Any causal language model of transformers, in eval mode.
        control: A control built for ``lm``; it is attached here.
        longest: Tokens of the longest sequence to come, for the check of packing.

    Attributes:
        layout: ``packed`` if the check showed that packing changes no logit, else ``padded``.
        padding_reason: Why batches are padded; ``None`` when they are packed.
        shares_prompts: Whether neighbours in a packed batch may share their prompt.
        log_prob_head: The LM head as it computes log-probs; ``None`` if the logits are not a linear head's output.
        stores_probabilities: Whether a trained head keeps its probabilities for backward; not under gradient
            checkpointing.
    """

    def __init__(self, lm: PreTrainedModel, control: Control, longest: int = 512) -> None:
        super().__init__()
        self.padding_reason = try_packed_attention(lm, longest)
        self.layout: Layout = "packed" if self.padding_reason is None else "padded"
        self.shares_prompts = self.layout == "packed"
        self.lm, self.control = lm, control
        has_linear_head = is_linear_head(lm)
        control.attach(lm)
        use_fast_products(lm)
        head: nn.Module = lm.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.log_prob_head = LogProbHead(head) if has_linear_head else None
        self.stores_probabilities = not checkpoints_activations(lm)
        if not self.stores_probabilities:
            checkpoint_activations(lm, self._checkpoint_contexts)

    @property
    def device(self) -> torch.device:
        """The device of the language model."""
        return self.lm.device

    def forward(self, blocks: Sequence[Block], num_completions: int) -> TokenLogps:
        """Return the log-probs of every trained token of a batch (:class:`Batch`), differentiable."""
        values = torch.cat([self._block_logps(block) for block in blocks])
        return TokenLogps(values, torch.cat([block["completion"] for block in blocks]), num_completions)

    def _block_logps(self, block: Block) -> Tensor:
        """Return the log-probs [N] of the trained tokens of a block."""
        inputs = (block["input_ids"], block["level_weights"], block["position_ids"], block["targets"])
        if "cu_seq_lens" not in block:
            return self._target_logps(*inputs, attention_mask=block["attention_mask"])
        layout = PackedLayout(block["cu_seq_lens"].tolist(), block.get("shared"))
        if "uncontrolled" not in block or not torch.is_grad_enabled() or self.trains_lm:
            return self._target_logps(*inputs, **packed_arguments(self.lm, layout))
        # Nothing that is trained acts on the prompts: they are read first, without gradient.
        split = PromptSplit(layout, block["uncontrolled"])
        is_prompt = split.is_prompt.to(self.device)
        ids, _, positions, _ = (tensor[:, is_prompt] for tensor in inputs)
        keys = PromptKeys()
        with torch.no_grad():
            self.run(
                ids,
                None,
                positions,
                logits_to_keep=1,
                **packed_arguments(self.lm, split.prompts, meet_prompt_keys=keys),
            )
        keys.is_stored = True
        rest = tuple(tensor[:, ~is_prompt] for tensor in inputs)
        return self._target_logps(*rest, **packed_arguments(self.lm, split.rest, meet_prompt_keys=keys))

    def _target_logps(
        self, ids: Tensor, level_weights: Tensor, positions: Tensor, targets: Tensor, **arguments: Any
    ) -> Tensor:
        """Return the log-probs [N] of the trained tokens of a forward pass; ``targets`` are as in :class:`Block`."""
        is_trained = targets != IGNORE
        targets = targets[is_trained]
        head = self.log_prob_head
        predicting = head.predicting(targets, store_probabilities=self.stores_probabilities) if head else nullcontext()
        with predicting:
            outputs = self.run(ids, level_weights, positions, logits_to_keep=is_trained, **arguments)
        return outputs[:, 0] if head else -functional.cross_entropy(outputs, targets, reduction="none")

    @property
    def trains_lm(self) -> bool:
        """Whether a parameter of the language model is trained."""
        return any(parameter.requires_grad for parameter in self.lm.parameters())

    def run(self, ids: Tensor, level_weights: Tensor | None, positions: Tensor, **arguments: Any) -> Tensor:
        """Return the logits of one forward pass of the language model under the control, f32.

        Training, scoring and generation all come through here. The level weights hold until the next call, and each
        part that gradient checkpointing computes again in backward gets the weights of its own call.

        Args:
            ids: Ids [R, T], virtual ids of the control slot included.
            level_weights: Level weights [R, T, K]; ``None`` = the language model without its control.
            positions: Position of each token in its sequence, [R, T].
            arguments: Further arguments of the model's forward method: attention, cache, ``logits_to_keep``.
        """
        self.control.set_level_weights(level_weights)
        # With the default of use_cache, packed sequences would see each other without an error.
        logits: Tensor = self.lm(
            inputs_embeds=self.control.embed(ids, level_weights, self.lm.get_input_embeddings()),
            position_ids=positions,
            **{"use_cache": False, **arguments},
        ).logits
        return logits.float()

    def _checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of a checkpointed part's forward pass and of its recomputation in backward.

        Other blocks have gone forward by the time of the recomputation. Without its own routing, the part would be
        computed with their levels; where shapes are equal, nothing would raise.
        """
        return nullcontext(), self._with_routing(self.control.routing)

    @contextmanager
    def _with_routing(self, routing: Any) -> Iterator[None]:
        current, self.control.routing = self.control.routing, routing
        try:
            yield
        finally:
            self.control.routing = current

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[Encoded],
        max_tokens: int = SCORED_TOKENS,
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[Tensor, Tensor]:
        """Return log p(y|x, level) in nats and the number of trained tokens of each sequence.

        Args:
            sequences: Sequences of one completion each, batched by length here. Neighbours with the same prompt at the
                same level share its computation.
            max_tokens: Largest number of tokens in one forward pass.
            reporter: Shows the progress.

        Returns:
            ([S] f64, [S] int64) in the order of ``sequences``, on the CPU.
        """
        assert all(len(sequence.spans) == 1 for sequence in sequences), "chains are not scored"
        was_training = self.training
        self.eval()
        sums, world = torch.zeros(len(sequences), dtype=torch.float64), World.current()
        groups = world.share(list(split_by_tokens(sequences, max_tokens, share=self.shares_prompts))).values()
        with reporter.progress("score", total=sum(map(len, groups))) as progress:
            for indices in groups:
                batch = collate([sequences[i] for i in indices], self.layout, share=self.shares_prompts)
                with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                    logps = self(to_device(batch["blocks"], self.device), len(indices))
                sums[indices] = logps.sums().double().cpu()
                progress.advance(len(indices))
        self.train(was_training)
        sums = world.sum(sums)  # each process has computed some and left the others at zero
        return sums, torch.tensor([sequence.num_trained for sequence in sequences])


def to_device(blocks: Sequence[Block], device: torch.device) -> list[Block]:
    """Return ``blocks`` with their tensors on ``device``."""
    return [
        cast(Block, {name: value.to(device) if isinstance(value, Tensor) else value for name, value in block.items()})
        for block in blocks
    ]
