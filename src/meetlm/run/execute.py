"""Executes a configuration: data, stages, diagnostics between them, the final export. The folder is the result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from meetlm.config.errors import ConfigError, RunError
from meetlm.config.files import write_atomic
from meetlm.controls.build import build_control
from meetlm.data.encoding import Encoded, Encoder
from meetlm.data.filters import prompt_overlap
from meetlm.data.formats import FORMATS
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.diagnostics.preference import HeldOut, PreferenceAccuracy, preference_accuracy, untouched_accuracy
from meetlm.export.peft import peft_failure_reason
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import check_positions, embedding_rows, load_lm, load_tokenizer, num_positions
from meetlm.policy.policy import Policy
from meetlm.policy.reference import reference_logps
from meetlm.recipes.config import RunConfig
from meetlm.run.folder import MEET, Meet, pin_lm, read_pinned, write_config, write_result
from meetlm.run.prepared import PreparedData, pinned_format, prepare_data
from meetlm.run.share import StageShare, stage_key
from meetlm.training.callbacks import counting
from meetlm.training.loop import checkpoint_step, checkpoints, remove_checkpoints
from meetlm.training.run_stage import DONE, run_stage
from meetlm.training.stage import StageSettings

Say = Callable[[str], None]


def execute(
    config: RunConfig,
    folder: Path,
    *,
    share: StageShare | None = None,
    prepared: PreparedData | None = None,
    lm_sha256: str | None = None,
    say: Say = lambda text: None,
    progress: bool = True,
) -> None:
    """Run every stage of ``config`` and leave the run in ``folder``; an interrupted run continues.

    Args:
        config: Resolved.
        folder: The run's; created.
        share: Finished stages that this run has in common with others.
        prepared: The data of ``config.data``, where they have been read for another run; read again where this run has
            pinned another prompt format.
        lm_sha256: Hash that the language model has to have, that of the runs that this one is compared with.
        say: Takes lines for people.
        progress: Show bars on stderr.

    Raises:
        RunError: The folder holds a finished run, or one of another configuration or another language model.
        MeetError: Data, model or configuration cannot be used.
    """
    if (folder / MEET).exists():
        raise RunError(f"{folder} holds a finished run; choose another folder or remove it")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("a run is one process on one device; it was started as several (WORLD_SIZE is above 1)")
    tokenizer = load_tokenizer(config.model.name)
    prompt_format = _format(folder, config, tokenizer, prepared)
    if prepared is not None and prepared.spec == prompt_format.spec:
        data = prepared
    else:
        data = prepare_data(config.data, prompt_format)
        for line in data.lines():
            say(line)
    _warn(data, config, say)
    write_config(folder, config, data.fingerprint, prompt_format.spec.to_dict())
    say(f"loading {config.model.name}")
    lm, _ = load_lm(config.model)
    pin_lm(folder, sha256_of(lm), lm_sha256)
    control = build_control(config.control, lm, prompt_format.words, config.seed)
    encoder = Encoder(prompt_format, control.slots, config.control.placement, embedding_rows(lm))
    items = {
        name: [FORMATS[name].item(encoder, example) for example in data.train]
        for name in dict.fromkeys(stage.format for stage in config.stages)
    }
    longest = max(len(one.ids) for made in items.values() for item in made for one in item)
    check_positions(lm, longest, "the longest training sequence")
    pairs = _within_positions(lm, HeldOut(encoder, data.test), say)
    policy = Policy(lm, control, longest=max(longest, pairs.longest))
    say(f"batches are {policy.layout}" + (f": {policy.padding_reason}" if policy.padding_reason else ""))

    def score(sequences: Sequence[Encoded], title: str) -> Tensor:
        with counting(title, len(sequences), shown=progress) as on_done:
            return reference_logps(policy, sequences, on_done=on_done)

    journal = _Journal(folder / "preference.json", share, say)
    untouched = score(pairs.bare, "untouched model")

    def measure() -> PreferenceAccuracy:
        with counting("preference accuracy", pairs.num_sequences, shown=progress) as on_done:
            return preference_accuracy(policy, pairs, untouched, on_done=on_done)

    def measure_fresh() -> PreferenceAccuracy:
        return untouched_accuracy(pairs, untouched) if control.is_identity() else measure()

    journal.note("before training", stage_key(config, data.key, -1), measure_fresh)
    for index, stage in enumerate(config.stages):
        key, place = stage_key(config, data.key, index), folder / stage.name
        shared = share is not None and share.place(key, place)
        made, reference = items[stage.format], None
        if OBJECTIVES[stage.objective.kind].is_pairwise:
            reference = score([one for item in made for one in item], f"{stage.name}: reference").view(len(made), 2)
        _announce(stage, place, len(made), shared, say)
        result = run_stage(
            policy,
            made,
            stage,
            config.optim,
            config.batch,
            place,
            seed=config.seed,
            reference=reference,
            progress=progress,
        )
        say(f"{stage.name}: {result.steps} steps in {result.seconds:.0f} s, {result.trained_parameters:,} parameters")
        if share:
            share.keep(key, place)
        journal.note(f"after {stage.name}", key, measure)
    meet = Meet(
        run=f"{folder.resolve().name}-{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]}",
        kind=config.control.kind,
        levels=control.levels,
        default_level=control.levels[-1],
        control=json.loads(config.control.model_dump_json()),
        lm_sha256=sha256_of(lm),
        format=prompt_format.spec,
        conversational=not isinstance(data.train[0].prompt, str),
        source=config.data.source,
    )
    write_result(folder, meet, policy, tokenizer)
    why = peft_failure_reason(control)
    if why:
        say(f"no PEFT folders: {why}")
    for stage in config.stages:
        if "lm" in stage.train:  # they hold the model and its optimizer; RUN/model has the result
            remove_checkpoints(folder / stage.name)
    say(f"the run is in {folder}")


def _announce(stage: StageSettings, place: Path, pairs: int, shared: bool, say: Say) -> None:
    """Say what a stage trains, or where it stands already."""
    earlier = checkpoints(place)
    if shared:
        say(f"{stage.name}: taken from a run that has the same stages up to here")
    elif (place / DONE).is_file():
        say(f"{stage.name}: done before")
    else:
        say(f"{stage.name}: trains {' and '.join(stage.train)} on {pairs} pairs at {stage.lr:g}")
        if earlier:
            say(f"{stage.name}: continues after step {checkpoint_step(earlier[-1])}")


def _warn(data: PreparedData, config: RunConfig, say: Say) -> None:
    """Say what bodes ill for the stages."""
    shared = prompt_overlap(data.train, data.test)
    if shared:
        say(f"warning: {len(shared)} of {len(data.test)} held-out prompts are in the training data too")
    for stage in config.stages:
        warning = stage.few_steps_warning(len(data.train), config.batch.pairs)
        if warning:
            say(f"warning: {warning}")


def _format(
    folder: Path, config: RunConfig, tokenizer: PreTrainedTokenizerBase, prepared: PreparedData | None
) -> PromptFormat:
    """Return the prompt format that a run in ``folder`` has pinned, else that of its data, or a new one."""
    pinned = read_pinned(folder)
    if pinned is not None:
        return PromptFormat(tokenizer, FormatSpec.from_dict(pinned))
    return PromptFormat(tokenizer, prepared.spec) if prepared else pinned_format(config, tokenizer)


def _within_positions(lm: PreTrainedModel, pairs: HeldOut, say: Say) -> HeldOut:
    """Return the held-out pairs that fit the model's positions: the filters look at their prompts alone."""
    most = num_positions(lm)
    if most is not None:
        dropped = pairs.drop_longer(most)
        if dropped:
            say(f"preference accuracy leaves out {dropped} pairs longer than the model's {most} positions")
        if not pairs.longest:
            raise ConfigError(f"no held-out pair fits the model's {most} positions")
    return pairs


class _Journal:
    """``preference.json``: what is measured before training and after each stage, kept when a run continues.

    Args:
        path: The file.
        share: Measurements that other runs have made.
        say: Takes lines for people.
    """

    def __init__(self, path: Path, share: StageShare | None, say: Say) -> None:
        self.path, self.share, self.say = path, share, say
        self.entries = json.loads(path.read_text()) if path.exists() else {}

    def note(self, when: str, key: str, measure: Callable[[], PreferenceAccuracy]) -> None:
        """Measure, unless this run or one that shares the stage ``key`` has."""
        if when not in self.entries:
            shared = self.share.measured(key) if self.share else None
            if shared and shared.is_file():
                self.entries[when] = json.loads(shared.read_text())
            else:
                self.entries[when] = measure().to_dict()
                if shared:
                    write_atomic(shared, json.dumps(self.entries[when]) + "\n")
            write_atomic(self.path, json.dumps(self.entries, indent=2) + "\n")
        self.say(f"{when}: {PreferenceAccuracy.from_dict(self.entries[when])}")
