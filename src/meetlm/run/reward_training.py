"""Trains a reward model from preference pairs with TRL's ``RewardTrainer``: loss −log σ(r_chosen − r_rejected).

The result is a plain transformers classifier that loads without meetlm. Pairs are read, filtered and tokenized here, so
that training sees the same token ids as scoring; TRL contributes the loop and the loss.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from meetlm.config.errors import ConfigError, DataError, RunError
from meetlm.config.extras import require_extra
from meetlm.config.files import refuse_foreign_files, write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.versions import versions
from meetlm.config.world import World
from meetlm.data.example import Example, fingerprint
from meetlm.data.filters import ExampleTokens, FilterReport, filter_eval, filter_train, prompt_overlap
from meetlm.data.settings import DataSettings
from meetlm.data.splits import read_splits
from meetlm.diagnostics.intervals import Interval, share_interval, wins
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_input import FORM_KEY, Form, RewardInput, TokenizedRow, choose_form
from meetlm.evaluation.settings import RewardSettings, RewardTraining
from meetlm.policy.loading import EMBEDDED, embedded_lm, load_tokenizer
from meetlm.training.callbacks import ShowProgress
from meetlm.training.stage import BatchSettings

RESULT = "reward.json"
"""File beside the checkpoint: settings, and the accuracy once training has finished."""
CHECKPOINTS = "checkpoints"
EXECUTION_ONLY = ("device", "micro_pairs", "save_steps", "gradient_checkpointing")
"""Settings that may change when an interrupted training continues."""
VERSIONS = ("meetlm", "torch", "transformers", "trl", "peft")


@dataclass(frozen=True, slots=True)
class TrainedReward:
    """The result of :func:`train_reward`; ``reward.json`` beside the checkpoint holds it too.

    Attributes:
        folder: The checkpoint.
        accuracy: Share of held-out pairs whose chosen reply has the higher reward; a tie counts half.
        longer_accuracy: Share of held-out pairs whose chosen reply is the longer one, in characters.
        num_test: Held-out pairs, one per prompt.
        num_train: Training pairs.
        steps: Optimizer steps.
    """

    folder: Path
    accuracy: Interval
    longer_accuracy: Interval
    num_test: int
    num_train: int
    steps: int

    def __str__(self) -> str:
        verdict = "above chance" if self.accuracy.low > 0.5 else "not significantly different from chance"
        return (
            f"held-out accuracy {self.accuracy} on {self.num_test} pairs ({verdict}); "
            f"accuracy of always picking the longer reply: {self.longer_accuracy}"
        )


def train_reward(settings: RewardTraining, out: Path, *, reporter: Reporter = SILENT) -> TrainedReward:
    """Train a reward model and measure it on held-out pairs; an interrupted training continues.

    Args:
        settings: What to train, and on which data.
        out: Folder of the checkpoint; created. A finished one of the same settings and data is returned as it is.
        reporter: Shows rows that were left out, the input form and the progress.

    Raises:
        ConfigError: TRL is not installed, or the model cannot be loaded.
        DataError: The data cannot be read.
        RunError: ``out`` holds another training, or training has diverged.
    """
    if World.from_environment().size > 1:
        raise ConfigError("a reward model is trained in one process; start `meet reward train` without a launcher")
    require_extra("trl", "reward", "training a reward model")
    source = str(embedded_lm()) if settings.model == EMBEDDED else settings.model
    tokenizer = load_tokenizer(source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError(f"the tokenizer of {settings.model!r} has neither a pad token nor an EOS token to pad with")
    recorded = getattr(AutoConfig.from_pretrained(source), FORM_KEY, None)
    train, held_out = read_splits(settings.data)
    form, reason = training_form(tokenizer, recorded, settings.input, is_text=not train.rows[0].prompt.is_chat)
    pairs = RewardPairs.prepare(settings.data, train, held_out, RewardInput(tokenizer, form, None))
    for line in pairs.lines():
        reporter.message(line)
    reporter.message(f"input form of the reward model: {form} ({reason})")
    record = _begin(settings, out, pairs.fingerprint, form)
    if "accuracy" in record:
        reporter.message(f"{out} is finished already")
        return _result(out, record)
    steps = _train(settings, source, tokenizer, pairs.train, out, form, reporter)
    accuracy, longer_accuracy = _measure(settings, out, pairs, reporter)
    record |= {
        "accuracy": asdict(accuracy),
        "longer": asdict(longer_accuracy),
        "num_test": len(pairs.test),
        "num_train": len(pairs.train),
        "steps": steps,
        "rows": [report.to_dict() for report in pairs.reports],
        "num_seen": pairs.num_seen,
    }
    write_atomic(out / RESULT, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    return _result(out, record)


def training_form(
    tokenizer: PreTrainedTokenizerBase, recorded: object, requested: str, *, is_text: bool
) -> tuple[Form, str]:
    """Return the form that a reward model is trained in, and the reason for it.

    Args:
        tokenizer: The tokenizer of the model.
        recorded: The form that the model was trained in before, if it is a reward model.
        requested: A form, or ``auto``.
        is_text: Whether the data are texts (HH transcripts are), not conversations.

    Raises:
        ConfigError: The tokenizer does not support the form.
    """
    if requested == "auto" and recorded is None:
        if tokenizer.sep_token_id is not None:
            return choose_form(tokenizer, None, "pair")[0], "the tokenizer has a SEP token"
        if is_text:
            return "text", "the data are texts, and the tokenizer has no SEP token"
    return choose_form(tokenizer, recorded, requested)


@dataclass(frozen=True)
class RewardPairs:
    """The pairs that a reward model is trained and measured on.

    Attributes:
        train: Chosen and rejected side of each pair, as token ids.
        test: Held-out pairs, one per prompt, without the prompts of ``train``.
        reports: The filters' reports on both.
        num_seen: Number of held-out pairs that were left out because their prompt is in the training data.
        fingerprint: Hash of every pair used, in order.
    """

    train: list[tuple[TokenizedRow, TokenizedRow]]
    test: list[Example]
    reports: tuple[FilterReport, FilterReport]
    num_seen: int
    fingerprint: str

    @classmethod
    def prepare(cls, settings: DataSettings, train: Any, held_out: Any, encoder: RewardInput) -> RewardPairs:
        """Filter and tokenize both splits; a pair is too long if either side with its prompt is.

        Raises:
            DataError: A row is not a pair or cannot be tokenized, or a split has no usable row.
        """
        other = next((example for example in (*train.rows, *held_out.rows) if not example.is_pair), None)
        if other is not None:
            raise DataError(
                "is not a pair of a chosen and a rejected reply",
                file=other.origin.file,
                line=other.origin.line,
                expected="pairs, which a reward model is trained on",
            )
        assert encoder.max_tokens is None, "pairs that are too long are left out and counted, not truncated"

        @cache
        def encode_replies(example: Example) -> tuple[TokenizedRow, TokenizedRow]:
            rows = encoder.encode([example.prompt] * 2, [reply.content for reply in example.best_and_worst])
            for row in rows:
                if isinstance(row, str):
                    raise DataError(row, file=example.origin.file, line=example.origin.line)
            chosen, rejected = (row for row in rows if isinstance(row, TokenizedRow))
            return chosen, rejected

        def lengths(example: Example) -> ExampleTokens:
            chosen, rejected = (row.ids for row in encode_replies(example))
            return ExampleTokens(max(len(chosen), len(rejected)), (0, 0), chosen == rejected)

        usable, train_report = filter_train(train, lengths, settings.max_length, settings.limit_train)
        test, test_report = filter_eval(held_out, lengths, settings.max_length, limit=settings.limit_eval)
        seen = {example.group for example in prompt_overlap(usable, test)}
        unseen = [example for example in test if example.group not in seen]
        if not unseen:
            raise DataError(
                "every held-out prompt is in the training data, so there is nothing to measure on",
                file=test_report.file,
                expected="other held-out prompts: pass --data.eval_file FILE, or --data.holdout NUMBER",
            )
        sha256 = fingerprint((example.prompt, *example.best_and_worst) for example in (*usable, *unseen))
        num_seen = len(test) - len(unseen)
        return cls(
            [encode_replies(example) for example in usable], unseen, (train_report, test_report), num_seen, sha256
        )

    def lines(self) -> list[str]:
        """Return how many rows are used, and why the other rows are not, as lines of text."""
        lines = [line for report in self.reports for line in report.lines()]
        if self.num_seen:
            lines.append(f"  left out: {self.num_seen} held-out pairs whose prompts are in the training data")
        return lines


def _begin(settings: RewardTraining, out: Path, data_sha256: str, form: Form) -> dict[str, Any]:
    """Return the record in ``out``, or write one for a new training.

    Raises:
        RunError: ``out`` holds a training with other settings or data, or other files.
    """
    resolved = settings.model_dump(mode="json")
    file = out / RESULT
    if file.is_file():
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        earlier = record["settings"]
        changed = [
            key for key in resolved if key not in (*EXECUTION_ONLY, "data") and earlier.get(key) != resolved[key]
        ]
        differences = [f"{key} was {earlier.get(key)!r} and is now {resolved[key]!r}" for key in changed]
        if record["data_sha256"] != data_sha256:
            differences.append("the training data changed")
        if differences:
            raise RunError(
                f"{out} holds a reward model of other settings: {'; '.join(differences)}; choose another folder"
            )
        return record
    refuse_foreign_files(out)
    out.mkdir(parents=True, exist_ok=True)
    record = {"settings": resolved, "input": form, "data_sha256": data_sha256, "versions": versions(*VERSIONS)}
    write_atomic(file, json.dumps(record, indent=2) + "\n")
    return record


def _result(out: Path, record: dict[str, Any]) -> TrainedReward:
    accuracy, longer_accuracy = Interval(**record["accuracy"]), Interval(**record["longer"])
    return TrainedReward(out, accuracy, longer_accuracy, record["num_test"], record["num_train"], record["steps"])


def _train(
    settings: RewardTraining,
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[TokenizedRow, TokenizedRow]],
    out: Path,
    form: Form,
    reporter: Reporter,
) -> int:
    """Train from the last checkpoint, write model and tokenizer into ``out``, and return the number of steps."""
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import RewardTrainer

    cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    batch = BatchSettings(pairs=settings.pairs, micro_pairs=settings.micro_pairs)
    arguments = RewardConfig(
        output_dir=str(out / CHECKPOINTS),
        model_init_kwargs={"dtype": "float32"},
        max_length=None,  # pairs that are too long have been left out and counted; TRL would drop them silently
        per_device_train_batch_size=batch.micro,
        gradient_accumulation_steps=batch.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup,
        train_sampling_strategy="group_by_length",
        length_column_name="length",
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
            "chosen_ids": [chosen.ids for chosen, _ in pairs],
            "rejected_ids": [rejected.ids for _, rejected in pairs],
            "chosen_types": [chosen.type_ids for chosen, _ in pairs],
            "rejected_types": [rejected.type_ids for _, rejected in pairs],
            "length": [max(len(row.ids) for row in pair) for pair in pairs],
        }
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)  # from PEFT
            trainer = RewardTrainer(
                model=source,
                args=arguments,
                data_collator=_Collator(tokenizer),
                train_dataset=dataset,
                processing_class=tokenizer,
                peft_config=_lora(settings),
            )
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {settings.model!r} cannot be trained as a reward model: {error}") from error
    trainer.remove_callback(PrinterCallback)
    with reporter.progress("reward model", unit="step") as progress:
        trainer.add_callback(_StepProgress(progress))
        trainer.train(resume_from_checkpoint=_last_checkpoint(out / CHECKPOINTS))
    model: Any = trainer.model
    if settings.lora_rank:
        model = model.merge_and_unload()
    setattr(model.config, FORM_KEY, form)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return int(trainer.state.global_step)


def _lora(settings: RewardTraining) -> Any:
    """Return PEFT's settings; ``None`` if all weights are trained."""
    if not settings.lora_rank:
        return None
    require_extra("peft", "reward", "--lora-rank above 0")
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.SEQ_CLS,  # the new head is trained as a whole
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules="all-linear",
    )


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last complete checkpoint, and remove incomplete checkpoints of a killed process."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / "trainer_state.json").is_file():
            complete[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path)
    return str(complete[max(complete)]) if complete else None


@dataclass(frozen=True)
class _Collator:
    """Pads the chosen and then the rejected sides of pairs, as TRL's collator does, with their token types."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Return tensors [2B, T]."""
        replies = [(example, name) for name in ("chosen", "rejected") for example in examples]
        columns = {"input_ids": [example[f"{name}_ids"] for example, name in replies]}
        if examples[0]["chosen_types"] is not None:
            columns["token_type_ids"] = [example[f"{name}_types"] for example, name in replies]
        return dict(self.tokenizer.pad(columns, padding_side="right", return_tensors="pt"))


class _StepProgress(ShowProgress):
    """Shows the optimizer steps, including steps of earlier calls."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the total, and the steps of earlier calls."""
        self._progress.add_total(state.max_steps)
        self._progress.advance(state.global_step)


def _measure(settings: RewardTraining, out: Path, pairs: RewardPairs, reporter: Reporter) -> tuple[Interval, Interval]:
    """Return the held-out accuracy of the written checkpoint, and that of always picking the longer reply."""
    model = RewardModel.load(RewardSettings(model=str(out), device=settings.device))
    completions = [reply.content for example in pairs.test for reply in example.best_and_worst]
    rows = model.tokenize([example.prompt for example in pairs.test for _ in range(2)], completions)
    rewards = model.score(rows, reporter=reporter)
    if None in rewards:
        names = [str(example.origin) for example in pairs.test for _ in range(2)]
        problems = model.problems(rows, rewards, names)
        reasons = "; ".join(map(str, problems))
        raise RunError(f"training has diverged: {reasons}; set a lower learning rate (--lr)")
    scores, lengths = np.array(rewards, np.float64), np.array([len(text.strip()) for text in completions])
    return share_interval(wins(scores[::2], scores[1::2])), share_interval(wins(lengths[::2], lengths[1::2]))
