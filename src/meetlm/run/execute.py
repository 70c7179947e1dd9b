"""Executes a configuration: data, stages, diagnostics between them, the final export. The folder is the result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.files import write_atomic
from meetlm.controls.build import build_control
from meetlm.data.encoding import Encoded, Encoder, pair_lengths
from meetlm.data.example import PreferenceExample
from meetlm.data.filters import FilterReport, filter_eval, filter_train, prompt_overlap
from meetlm.data.prompt_format import FormatSpec, PromptFormat, pin_format
from meetlm.data.settings import DataSettings
from meetlm.data.sources import SOURCES, read_examples
from meetlm.diagnostics.preference import PreferenceAccuracy, preference_accuracy
from meetlm.export.peft import why_not_peft
from meetlm.policy.loading import check_positions, load_lm, load_tokenizer, num_positions
from meetlm.policy.policy import Policy
from meetlm.recipes.config import RunConfig
from meetlm.run.folder import MEET, Meet, read_pinned, write_config, write_result
from meetlm.training.callbacks import counting
from meetlm.training.loop import checkpoints, step_of
from meetlm.training.run_stage import lm_sha256, run_stage

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What a run trains and is measured on.

    Attributes:
        train: Pairs that passed the filters.
        test: Held-out pairs, one a prompt.
        reports: The filters' accounts of both.
    """

    train: list[PreferenceExample]
    test: list[PreferenceExample]
    reports: tuple[FilterReport, FilterReport]

    def fingerprint(self) -> str:
        """Return a hash of every row used, in order."""
        digest = hashlib.sha256()
        for example in (*self.train, *self.test):
            digest.update(repr((example.prompt, example.chosen, example.rejected)).encode())
        return digest.hexdigest()


def prepare_data(settings: DataSettings, prompt_format: PromptFormat) -> PreparedData:
    """Read and filter both splits; lengths are counted without any control, so every method has the same rows."""

    def lengths(example: PreferenceExample) -> tuple[int, int, int]:
        return pair_lengths(prompt_format, example)

    train, of_train = filter_train(read_examples(settings, "train"), lengths, settings.max_length, settings.limit_train)
    test, of_test = filter_eval(
        read_examples(settings, "eval"),
        lengths,
        settings.max_length,
        need_pairs=True,
        limit=settings.limit_eval,
    )
    return PreparedData(train, test, (of_train, of_test))


def execute(config: RunConfig, folder: Path, *, say: Say = lambda text: None, progress: bool = True) -> None:
    """Run every stage of ``config`` and leave the run in ``folder``; an interrupted run continues.

    Args:
        config: Resolved.
        folder: The run's; created.
        say: Takes lines for people.
        progress: Show bars on stderr.

    Raises:
        RunError: The folder holds a finished run, or one of another configuration.
        MeetError: Data, model or configuration cannot be used.
    """
    if (folder / MEET).exists():
        raise RunError(f"{folder} holds a finished run; choose another folder or remove it")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a run is one process on one device; it was started as several (WORLD_SIZE is above 1)")
    tokenizer = load_tokenizer(config.model.name)
    prompt_format = _format(folder, config, tokenizer)
    data = prepare_data(config.data, prompt_format)
    for line in (line for report in data.reports for line in report.lines()):
        say(line)
    shared = prompt_overlap(data.train, data.test)
    if shared:
        say(f"warning: {len(shared)} of {len(data.test)} held-out prompts are in the training data too")
    for stage in config.stages:
        warning = stage.few_steps(len(data.train), config.batch.pairs)
        if warning:
            say(f"warning: {warning}")
    write_config(folder, config, data.fingerprint(), prompt_format.spec.to_dict())
    say(f"loading {config.model.name}")
    lm, _ = load_lm(config.model)
    control = build_control(config.control, lm, prompt_format.words, config.seed)
    encoder = Encoder(prompt_format, control.slots, config.control.placement)
    items = [encoder.pair(example) for example in data.train]
    longest = max(_tokens(item) for item in items)
    check_positions(lm, longest, "the longest training sequence")
    test, longest_test = _within_positions(lm, encoder, data.test, say)
    policy = Policy(lm, control, longest=max(longest, longest_test))
    say(f"batches are {policy.layout}" + (f": {policy.why_padded}" if policy.why_padded else ""))
    journal = _Journal(folder / "preference.json", say)

    def measure() -> PreferenceAccuracy:
        with counting("preference accuracy", 4 * len(test), shown=progress) as on_done:
            return preference_accuracy(policy, encoder, test, on_done=on_done)

    journal.note("before training", measure)
    for stage in config.stages:
        say(f"{stage.name}: trains {' and '.join(stage.train)} on {len(items)} pairs at {stage.lr:g}")
        earlier = checkpoints(folder / stage.name)
        if earlier:
            say(f"{stage.name}: continues after step {step_of(earlier[-1])}")
        result = run_stage(
            policy, items, stage, config.optim, config.batch, folder / stage.name, seed=config.seed, progress=progress
        )
        say(f"{stage.name}: {result.steps} steps in {result.seconds:.0f} s, {result.trained_parameters:,} parameters")
        journal.note(f"after {stage.name}", measure)
    meet = Meet(
        run=f"{folder.resolve().name}-{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]}",
        kind=config.control.kind,
        levels=control.levels,
        default_level=control.levels[-1],
        control=json.loads(config.control.model_dump_json()),
        lm_sha256=lm_sha256(lm),
        format=prompt_format.spec,
        conversational=not isinstance(data.train[0].prompt, str),
        source=config.data.source,
    )
    write_result(folder, meet, policy, tokenizer)
    why = why_not_peft(control)
    if why:
        say(f"no PEFT folders: {why}")
    _drop_large_checkpoints(folder, [stage.name for stage in config.stages if "lm" in stage.train])
    say(f"the run is in {folder}")


def _format(folder: Path, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PromptFormat:
    """Return the prompt format that a run in ``folder`` has pinned, or a new one."""
    pinned = read_pinned(folder)
    if pinned is not None:
        return PromptFormat(tokenizer, FormatSpec.from_dict(pinned))
    return pin_format(tokenizer, system=config.format.system, stop=SOURCES[config.data.source].stop)


def _within_positions(
    lm: PreTrainedModel, encoder: Encoder, test: list[PreferenceExample], say: Say
) -> tuple[list[PreferenceExample], int]:
    """Return the held-out pairs that fit the model's positions (prompts alone are filtered), and the most tokens."""
    most = num_positions(lm)
    lengths = [_tokens(encoder.pair(example)) for example in test]
    fit = [example for example, length in zip(test, lengths, strict=True) if most is None or length <= most]
    if len(fit) < len(test):
        say(f"preference accuracy leaves out {len(test) - len(fit)} pairs longer than the model's {most} positions")
    if not fit:
        raise ConfigError(f"no held-out pair fits the model's {most} positions")
    return fit, max(length for length in lengths if most is None or length <= most)


def _tokens(pair: tuple[Encoded, Encoded]) -> int:
    """The tokens of a pair's longer sequence, slot included."""
    return max(len(side.ids) for side in pair)


class _Journal:
    """``preference.json``: preference accuracy before training and after each stage, kept when a run continues."""

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self.say = path, say
        self.entries = json.loads(path.read_text()) if path.exists() else {}

    def note(self, when: str, measure: Callable[[], PreferenceAccuracy]) -> None:
        if when not in self.entries:
            self.entries[when] = measure().to_dict()
            write_atomic(self.path, json.dumps(self.entries, indent=2) + "\n")
        entry = self.entries[when]
        shown = entry["by_sum"]
        self.say(
            f"preference accuracy {when}: {shown['value']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}] "
            f"on {entry['pairs']} pairs (per token {entry['by_token']['value']:.3f}; "
            f"the shorter reply {entry['shorter']['value']:.3f}; {entry['nll']:.3f} nats a token)"
        )


def _drop_large_checkpoints(folder: Path, stages: Sequence[str]) -> None:
    """Remove checkpoints that hold the language model and its optimizer: RUN/model has the result."""
    for name in stages:
        for checkpoint in checkpoints(folder / name):
            shutil.rmtree(checkpoint)
