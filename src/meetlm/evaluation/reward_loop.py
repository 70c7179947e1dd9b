"""The loop that trains a reward model, TRL's ``RewardTrainer``: settings in, a checkpoint of transformers out.

Knows ids; knows neither data sources nor how good the model is.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from meetlm.config.errors import ConfigError
from meetlm.config.settings import Settings
from meetlm.data.settings import DataSettings
from meetlm.evaluation.reward_input import RECORD, Ids
from meetlm.policy.loading import EMBEDDED

CHECKPOINTS = "checkpoints"


class RewardTraining(Settings):
    """What a reward model is trained from, and how."""

    model: str = Field(
        EMBEDDED, description=f"language model or classifier to start from: hub name, folder or {EMBEDDED!r}"
    )
    data: DataSettings = Field(description="preference pairs")
    input: Literal["auto", "pair", "chat", "text"] = Field(
        "auto",
        description="how a prompt and its reply are read; auto: two sequences where the tokenizer has tokens for them, "
        "else the chat template for conversations, and one text for texts; as scoring reads them, white space around a "
        "reply left out",
    )
    lora_rank: int = Field(
        16, ge=0, description="rank of the LoRA that is trained on all linear layers and merged; 0 trains every weight"
    )
    lr: float = Field(
        5e-4, gt=0, allow_inf_nan=False, description="AdamW's rate; 2e-5 is usual for every weight (lora_rank 0)"
    )
    epochs: float = Field(1.0, gt=0, allow_inf_nan=False, description="passes over the training pairs")
    pairs: int = Field(8, ge=1, description="pairs in one optimizer step")
    micro_pairs: int = Field(8, ge=1, description="most pairs in one forward pass")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    seed: int = Field(0, ge=0, description="of the new head, of LoRA, and of the order")
    save_steps: int = Field(20, ge=1, description="checkpoint every so many steps")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is one")
    gradient_checkpointing: bool = Field(False, description="recompute activations in backward: less memory, slower")


def run_loop(
    settings: RewardTraining,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Ids, Ids]],
    out: Path,
    form: str,
    on_total: Callable[[int], object],
    on_done: Callable[[int], object],
) -> int:
    """Train, from the last checkpoint where there is one, and write the model with its tokenizer into ``out``.

    Args:
        settings: How.
        source: Name or folder of the model to start from.
        tokenizer: Its own, with a pad token.
        pairs: Chosen and rejected side of each.
        out: The folder; checkpoints are in one within it.
        form: How rows are read: it is recorded in the model's config.
        on_total: Is told the number of optimizer steps.
        on_done: Is told the number of steps done.

    Returns:
        The number of steps.

    Raises:
        ConfigError: The model cannot be loaded as a reward model.
    """
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    micro = max(n for n in range(1, min(settings.pairs, settings.micro_pairs) + 1) if settings.pairs % n == 0)
    lengths = [max(len(side.ids) for side in sides) for sides in pairs]
    order = _order(lengths, settings)
    arguments = RewardConfig(
        output_dir=str(out / CHECKPOINTS),
        model_init_kwargs={"dtype": "float32"},
        max_length=None,  # what is too long has been dropped and counted
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.pairs // micro,
        num_train_epochs=1,  # the order holds every pass
        learning_rate=settings.lr,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        train_sampling_strategy="sequential",
        activation_checkpointing=settings.gradient_checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # TRL refuses to split a batch among GPUs
    dataset = Dataset.from_dict(
        {
            "chosen_ids": [pairs[n][0].ids for n in order],
            "rejected_ids": [pairs[n][1].ids for n in order],
            "chosen_types": [pairs[n][0].types for n in order],
            "rejected_types": [pairs[n][1].types for n in order],
        }
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning
            )  # PEFT asks for it
            trainer = RewardTrainer(
                model=source,
                args=arguments,
                data_collator=_Collator(tokenizer.pad_token_id),
                train_dataset=dataset,
                processing_class=tokenizer,
                peft_config=_lora(settings),
                callbacks=[_Steps(on_total, on_done)],
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {settings.model!r} cannot be trained as a reward model: {error}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=_last_checkpoint(out / CHECKPOINTS))
    model: Any = trainer.model
    if settings.lora_rank:
        model = model.merge_and_unload()
    setattr(model.config, RECORD, form)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return int(trainer.state.global_step)


def _order(lengths: list[int], settings: RewardTraining) -> list[int]:
    """Return the numbers of the pairs in the order of all passes: shuffled, pairs of like length in one step.

    It depends on the seed alone, so a training that goes on sees the pairs that it would have seen.
    """
    random = np.random.default_rng(settings.seed)
    stream: list[int] = []
    while len(stream) < round(settings.epochs * len(lengths)):
        shuffled = random.permutation(len(lengths))
        chunks = [shuffled[at : at + 16 * settings.pairs] for at in range(0, len(shuffled), 16 * settings.pairs)]
        grouped = [n for chunk in chunks for n in sorted(chunk.tolist(), key=lambda n: -lengths[n])]
        steps = [grouped[at : at + settings.pairs] for at in range(0, len(grouped), settings.pairs)]
        stream += [n for step in random.permutation(len(steps)) for n in steps[step]]
    return stream[: max(1, round(settings.epochs * len(lengths)))]


def _lora(settings: RewardTraining) -> Any:
    """Return PEFT's settings; ``None`` where every weight is trained."""
    if not settings.lora_rank:
        return None
    if find_spec("peft") is None:
        raise ConfigError("lora_rank needs PEFT: pip install 'meetlm[reward]', or set lora_rank to 0")
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.SEQ_CLS,  # the new head is trained as a whole
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules="all-linear",
    )


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last whole checkpoint; one that a kill cut off has no state and is removed."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file():
            found[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path)
    return str(found[max(found)]) if found else None


@dataclass(frozen=True)
class _Collator:
    """Pads the chosen and then the rejected sides of pairs, as TRL's own does, with token types where there are any."""

    pad: int

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return tensors [2B, T]."""
        sides = [example[f"{side}_ids"] for side in ("chosen", "rejected") for example in examples]
        types = [example[f"{side}_types"] for side in ("chosen", "rejected") for example in examples]
        columns = {"input_ids": (sides, self.pad), "attention_mask": ([[1] * len(ids) for ids in sides], 0)}
        if types[0] is not None:
            columns["token_type_ids"] = (types, 0)
        longest = max(map(len, sides))
        return {
            name: torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
            for name, (rows, value) in columns.items()
        }


class _Steps(TrainerCallback):
    """Tells how far training is."""

    def __init__(self, on_total: Callable[[int], object], on_done: Callable[[int], object]) -> None:
        self._on_total, self._on_done = on_total, on_done

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the number of steps, and those that earlier calls did."""
        self._on_total(state.max_steps)
        self._on_done(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count one."""
        self._on_done(1)
