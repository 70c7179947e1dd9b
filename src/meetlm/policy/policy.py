"""The policy: one forward from a batch to the log-probs of its trained tokens.

Shapes: R rows, T tokens of a row, K levels, N trained tokens, S completions (one a sequence but in chains). The head
runs only where a token is trained. Knows no loss: objectives are functions of what comes out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from meetlm.config.reporter import SILENT, Reporter
from meetlm.controls.base import Control
from meetlm.controls.linear import use_fast_products
from meetlm.data.batch import IGNORE, Block, Layout, budget, collate
from meetlm.data.encoding import Encoded
from meetlm.policy.head import is_linear_head, token_logps
from meetlm.policy.loading import checkpoint_activations, checkpoints_activations
from meetlm.policy.packing import packed_arguments, packing_failure_reason, replace_attention

SCORED_TOKENS = 2048
"""Most tokens that are scored in one forward pass."""


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Log-probs of trained tokens.

    Attributes:
        values: [N] f32, natural log.
        completion: [N] int64, the completion of each.
        num_completions: S.
    """

    values: Tensor
    completion: Tensor
    num_completions: int

    def sums(self) -> Tensor:
        """Return log p(y|x, level) of each completion, [S]."""
        return self.values.new_zeros(self.num_completions).index_add(0, self.completion, self.values)

    def counts(self) -> Tensor:
        """Return the number of trained tokens of each completion, [S]."""
        return torch.bincount(self.completion, minlength=self.num_completions)


class Policy(nn.Module):
    """A language model that obeys a control.

    Args:
        lm: Any causal language model of transformers, in eval mode.
        control: Built for ``lm``; attached here.
        longest: Tokens of the longest sequence to come, for the packing check.
        layout: Known already, where ``lm`` has no weights to check it with.

    Attributes:
        layout: ``packed`` where the architecture was shown to pack exactly, else ``padded``.
        padding_reason: The reason, for reports; ``None`` when packed.
        shares_prompts: Whether neighbours in a packed batch may share their prompt.
        has_linear_head: Whether the logits are the output of a linear head for the last hidden states.
        stores_probabilities: Whether a head that is trained keeps them for backward; not under gradient checkpointing.
    """

    def __init__(
        self, lm: PreTrainedModel, control: Control, longest: int = 512, *, layout: Layout | None = None
    ) -> None:
        super().__init__()
        if layout == "packed":
            replace_attention(lm)
        self.padding_reason = packing_failure_reason(lm, longest) if layout is None else None
        self.layout: Layout = layout or ("packed" if self.padding_reason is None else "padded")
        self.shares_prompts = self.layout == "packed"
        self.has_linear_head = layout is not None or is_linear_head(lm)
        self.lm, self.control = lm, control
        self._weights: Tensor | None = None
        control.attach(lm)
        use_fast_products(lm)
        self.stores_probabilities = not checkpoints_activations(lm)
        if not self.stores_probabilities:
            checkpoint_activations(lm, self._contexts)

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.lm.device

    def forward(self, blocks: Sequence[Block], num_completions: int) -> TokenLogps:
        """Return the log-probs of every trained token of a batch (:class:`Batch`), differentiable."""
        values = torch.cat([self._block(block) for block in blocks])
        return TokenLogps(values, torch.cat([block["completion"] for block in blocks]), num_completions)

    def _block(self, block: Block) -> Tensor:
        ids, weights, targets = block["input_ids"], block["level_weights"], block["targets"]
        keep = targets != IGNORE
        self._set_level_weights(weights)
        arguments = (
            packed_arguments(self.lm, block["cu_seq_lens"], block.get("shared"))
            if "cu_seq_lens" in block
            else {"attention_mask": block["attention_mask"]}
        )
        arguments |= {
            "inputs_embeds": self.control.embed(ids, weights, self.lm.get_input_embeddings()),
            "position_ids": block["position_ids"],
            "use_cache": False,  # the default would silently let packed sequences see each other
        }
        if self.has_linear_head:
            hidden = self.lm.base_model(**arguments).last_hidden_state[keep]
            head: nn.Module = self.lm.get_output_embeddings()  # type: ignore[no-untyped-call]
            return token_logps(hidden, head, targets[keep], keep=self.stores_probabilities)
        logits = self.lm(logits_to_keep=keep, **arguments).logits
        return -functional.cross_entropy(logits.float(), targets[keep], reduction="none")

    def _set_level_weights(self, weights: Tensor | None) -> None:
        self._weights = weights
        if weights is not None:
            self.control.set_level_weights(weights)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of a checkpointed part's forward and of its recomputation in backward.

        By then other blocks have gone forward: their levels would be used, silently where shapes are equal.
        """
        return nullcontext(), self._weighed(self._weights)

    @contextmanager
    def _weighed(self, weights: Tensor | None) -> Iterator[None]:
        now = self._weights
        self._set_level_weights(weights)
        try:
            yield
        finally:
            self._set_level_weights(now)

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[Encoded],
        max_tokens: int = SCORED_TOKENS,
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[Tensor, Tensor]:
        """Return (log p(y|x, level) [S] f64, trained tokens [S]) of sequences in the order given, on the CPU.

        Args:
            sequences: Any number, of one completion each; they are batched by length. Where neighbours have one prompt
                under one level, it is computed once.
            max_tokens: Most tokens in one forward pass.
            reporter: Shows the number of sequences that are scored.
        """
        assert all(len(s.spans) == 1 for s in sequences), "chains are not scored"
        was_training = self.training
        self.eval()
        sums = torch.zeros(len(sequences), dtype=torch.float64)
        with reporter.progress("score", total=len(sequences)) as progress:
            for indices in budget(sequences, max_tokens, share=self.shares_prompts):
                batch = collate([sequences[i] for i in indices], self.layout, share=self.shares_prompts)
                with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                    logps = self(to_device(batch["blocks"], self.device), len(indices))
                sums[indices] = logps.sums().double().cpu()
                progress.advance(len(indices))
        self.train(was_training)
        return sums, torch.tensor([s.num_trained for s in sequences])


def to_device(blocks: Sequence[Block], device: torch.device) -> list[Block]:
    """Return ``blocks`` with their tensors on ``device``."""
    return [
        cast(Block, {name: t.to(device) if isinstance(t, Tensor) else t for name, t in block.items()})
        for block in blocks
    ]
