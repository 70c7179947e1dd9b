"""Settings of an evaluation and its evaluators."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from meetlm.config.settings import Settings
from meetlm.data.settings import DataSettings
from meetlm.evaluation.outcomes import PAPER_BAND, largest_tie

_RESERVED = {"model", "messages", "temperature", "max_tokens", "stream", "n"}


class EvaluationSettings(Settings):
    """How outcomes and intervals are computed."""

    tie_band: tuple[float, float] = Field(
        PAPER_BAND, description="count a tie if sigmoid(reward difference) is between these bounds"
    )
    stemmer: bool = Field(False, description="stem words for ROUGE")
    resamples: int = Field(2000, ge=100, description="number of bootstrap resamples of prompts")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")

    @field_validator("tie_band")
    @classmethod
    def _is_symmetric(cls, value: tuple[float, float]) -> tuple[float, float]:
        largest_tie(value)
        return value


class DialSettings(Settings):
    """How a dial is measured, and when it is turned too far."""

    nll_increase: float = Field(
        0.5, gt=0, description="largest safe increase of the NLL under the base model, in nats per token"
    )
    repetition_increase: float = Field(0.05, gt=0, description="largest safe increase of the share of repeated 4-grams")
    cut_increase: float = Field(
        0.1, gt=0, description="largest safe increase of the share of replies cut off at the limit of new tokens"
    )


class RewardSettings(Settings):
    """The reward model and the form of its input."""

    model: str = Field(description="hub name or folder of a sequence classifier with one label")
    input: Literal["auto", "pair", "chat", "text"] = Field(
        "auto",
        description="input form: pair (question and answer as two sequences), chat (the tokenizer's chat template), "
        "text (prompt and completion joined by a space unless the prompt ends in white space) or auto (as the "
        "checkpoint or its tokenizer specifies). White space around a completion is always removed",
    )
    eos: bool = Field(False, description="append the EOS token to inputs of the form text")
    max_length: int | None = Field(
        None, ge=8, description="maximum number of tokens per row; null = the model's maximum"
    )
    batch_tokens: int = Field(4096, ge=1, description="maximum number of tokens per forward pass, padding included")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device: cpu, cuda or auto (CUDA if it is available)"
    )


class RewardData(DataSettings):
    """Where preference pairs for a reward model are and which of them are used."""

    source: str = Field(description="Format of the rows: hh, summarize or pairs; by default decided by the first row.")
    max_length: int = Field(
        256, ge=1, description="Maximum number of tokens of the prompt with either reply; longer pairs are left out."
    )


class RewardTraining(Settings):
    """What a reward model is trained from, and how."""

    model: str = Field("smollm2", description="language model or classifier to start from: hub name, folder or smollm2")
    data: RewardData = Field(description="preference pairs")
    input: Literal["auto", "pair", "chat", "text"] = Field(
        "auto",
        description="input form: pair, chat, text or auto (pair if the tokenizer marks two sequences as a pair, else "
        "chat for conversations and text for plain text)",
    )
    lora_rank: int = Field(
        16, ge=0, description="rank of the LoRA on all linear layers, merged after training; 0 = train all weights"
    )
    lr: float | None = Field(None, gt=0, description="learning rate of AdamW; null = 5e-4, or 2e-5 with lora_rank 0")
    epochs: float = Field(1.0, gt=0, description="number of epochs")
    pairs: int = Field(8, ge=1, description="pairs per optimizer step")
    micro_pairs: int = Field(8, ge=1, description="maximum number of pairs per forward pass")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises from 0")
    seed: int = Field(0, ge=0, description="seed of the new head, of LoRA and of the data order")
    save_steps: int = Field(20, ge=1, description="optimizer steps between checkpoints")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="device: cpu, cuda or auto (CUDA if it is available)"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward: less memory, slower")

    @property
    def learning_rate(self) -> float:
        """Return ``lr``, or its default for this ``lora_rank``."""
        return self.lr or (5e-4 if self.lora_rank else 2e-5)


class Prices(Settings):
    """Prices of an endpoint, per million tokens, in any currency."""

    prompt: float = Field(ge=0, description="per million prompt tokens")
    completion: float = Field(ge=0, description="per million completion tokens")


class JudgeSettings(Settings):
    """An LLM judge: an OpenAI-compatible endpoint, and what it is asked."""

    model: str = Field(min_length=1, description="name of the judge model at the endpoint")
    base_url: str = Field("https://api.openai.com/v1", description="OpenAI-compatible endpoint, usually ending in /v1")
    key_env: str | None = Field("OPENAI_API_KEY", description="environment variable with the key; null = no key")
    prompt: str | None = Field(
        None,
        description="judge prompt: summary, dialogue, letter or a YAML file; null = summary for summarize data, else "
        "dialogue",
    )
    num_prompts: int = Field(128, ge=1, description="number of held-out prompts to judge")
    seed: int = Field(0, ge=0, description="seed of the choice of these prompts")
    temperature: float | None = Field(0.0, ge=0, description="sampling temperature; null = the endpoint's default")
    max_tokens: int | None = Field(
        1024, ge=1, description="maximum number of tokens per response; null = the endpoint's default"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="further fields of the request, such as {seed: 1}")
    concurrency: int = Field(8, ge=1, description="number of concurrent calls")
    timeout: float = Field(120.0, gt=0, description="seconds until a call counts as failed")
    retries: int = Field(5, ge=0, description="retries after a rate limit, time-out, lost connection or server error")
    ask_again: bool = Field(False, description="repeat calls whose stored response has no verdict")
    prices: Prices | None = Field(
        None, description="prices per million tokens, such as {prompt: 2.5, completion: 10}; null = cost unknown"
    )

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError(f"expected a URL that begins with http:// or https://, got {value!r}")
        return value.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _has_no_reserved_field(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in sorted(_RESERVED & set(value)):
            is_setting = name in cls.model_fields
            raise ValueError(f"{name!r} is not allowed here" + (f"; set judge.{name}" if is_setting else ""))
        return value
