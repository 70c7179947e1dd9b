"""Run a configuration in a folder: data, stages, preference accuracy before and after each stage, export."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from meetlm.config.files import explain_write_errors, locked, refuse_foreign_files, write_atomic
from meetlm.config.reporter import SILENT, Reporter
from meetlm.config.world import World, connect
from meetlm.controls.build import build_control
from meetlm.data.prompt_format import FormatSpec, PromptFormat
from meetlm.diagnostics.preference import PreferenceAccuracy, base_model_accuracy, preference_accuracy
from meetlm.export.peft import peft_failure_reason
from meetlm.objectives.base import OBJECTIVES
from meetlm.policy.fingerprint import sha256_of
from meetlm.policy.loading import EMBEDDED, device_of, load_lm, load_tokenizer
from meetlm.policy.policy import Policy
from meetlm.policy.reference import reference_logps
from meetlm.recipes.config import RunConfig
from meetlm.run.folder import (
    CONFIG,
    MEET,
    MODEL,
    Meet,
    pin_lm,
    read_pinned,
    read_pinned_levels,
    write_config,
    write_result,
)
from meetlm.run.inputs import encode_inputs
from meetlm.run.prepared import PreparedData, pinned_format, prepare_data
from meetlm.run.stage_cache import StageCache, stage_key
from meetlm.training.checkpoints import checkpoint_step, checkpoints, remove_checkpoints
from meetlm.training.run_stage import DONE, run_stage
from meetlm.training.stage import StageSettings


def execute(
    config: RunConfig,
    folder: Path,
    *,
    cache: StageCache | None = None,
    prepared: PreparedData | None = None,
    lm_sha256: str | None = None,
    reporter: Reporter = SILENT,
) -> None:
    """Run every stage of ``config`` in ``folder``; an interrupted run continues, and a finished one stays as it is.

    Every process of a job calls this with the same arguments. Each reads the data and the model; the main process
    writes and reports.

    Args:
        config: The configuration.
        folder: Folder of the run; created.
        cache: Finished stages of other runs; this run reuses them and adds its own stages.
        prepared: Data that another run has read; not used if this run has pinned another prompt format.
        lm_sha256: Hash of the language model in the other runs of a sweep; another hash is refused.
        reporter: Shows messages, progress and accuracies.

    Raises:
        RunError: The folder holds a run of another configuration or data, or other files, or is in use by another
            process.
        MeetError: Data, model or configuration cannot be used.
    """
    world = World.from_environment()
    config.batch.of_process(world)  # before the data are read, which may take minutes
    connect(device_of(config.model))
    with ExitStack() as stack:
        with world.main_first():
            if world.is_main:
                if not (folder / CONFIG).exists():
                    refuse_foreign_files(folder)
                stack.enter_context(locked(folder))
        _execute(config, folder, world, cache, prepared, lm_sha256, reporter if world.is_main else SILENT)


def _execute(
    config: RunConfig,
    folder: Path,
    world: World,
    cache: StageCache | None,
    prepared: PreparedData | None,
    lm_sha256: str | None,
    reporter: Reporter,
) -> None:
    with world.main_first():
        tokenizer = load_tokenizer(config.model.name)
        prompt_format = _format(folder, config, tokenizer, prepared)
        if prepared is not None and prepared.spec == prompt_format.spec:
            data = prepared
        else:
            data = prepare_data(config.data, prompt_format, pinned_levels=read_pinned_levels(folder))
            for line in data.lines():
                reporter.message(line)
    world.require_same("the data", data.fingerprint)
    world.from_main(
        lambda: write_config(folder, config, data.fingerprint, prompt_format.spec.to_dict(), data.fitted.to_dict())
    )
    if world.from_main((folder / MEET).exists):
        world.from_main(lambda: _remove_checkpoints(config, folder))  # an interrupted call may have left some
        reporter.message(f"{folder} contains this run already, finished")
        return
    reporter.message(f"loading {config.model.name}")
    with world.main_first():
        lm, _ = load_lm(config.model)
    world.require_same(f"model {config.model.name!r}", sha256_of(lm))
    world.from_main(lambda: pin_lm(folder, sha256_of(lm), lm_sha256))
    levels = config.control_levels(data.levels)
    control = build_control(config.control, levels, lm, prompt_format.tokenize, config.seed)
    inputs = encode_inputs(config, data, prompt_format, lm, control, reporter)
    pairs = inputs.pairs
    policy = Policy(lm, control, longest=max(inputs.longest, pairs.longest))
    reason = f": {policy.padding_reason}" if policy.padding_reason else ""
    reporter.message(f"batches are {policy.layout}{reason}")
    accuracies = _Accuracies(folder / "preference.json", cache, reporter)
    reporter.message(f"scoring {len(pairs.uncontrolled)} held-out replies under the base model")
    base_logps = reference_logps(policy, pairs.uncontrolled, reporter=reporter)

    def measure() -> PreferenceAccuracy:
        return preference_accuracy(policy, pairs, base_logps, reporter=reporter)

    def measure_untrained() -> PreferenceAccuracy:
        return base_model_accuracy(pairs, base_logps) if control.is_identity() else measure()

    accuracies.record("before training", stage_key(config, data.key, -1), measure_untrained)
    for index, stage in enumerate(config.stages):
        key, stage_folder = stage_key(config, data.key, index), folder / stage.name
        is_shared = cache is not None and cache.restore(key, stage_folder)
        stage_items, reference = inputs.items[stage.format], None
        if OBJECTIVES[stage.objective.kind].is_pairwise:
            reporter.message(f"{stage.name}: scoring the training pairs under the reference model")
            replies = [sequence for item in stage_items for sequence in item]
            reference = reference_logps(policy, replies, reporter=reporter).view(len(stage_items), 2)
        _announce(stage, stage_folder, len(stage_items), is_shared, reporter)
        result = run_stage(
            policy,
            stage_items,
            stage,
            config.optim,
            config.batch,
            stage_folder,
            seed=config.seed,
            reference=reference,
            reporter=reporter,
        )
        reporter.message(
            f"{stage.name}: {result.steps} steps in {result.seconds:.0f} s, {result.trained_parameters:,} parameters"
        )
        if cache:
            cache.store(key, stage_folder)
        accuracies.record(f"after {stage.name}", key, measure)
    meet = Meet(
        run=f"{folder.resolve().name}-{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:8]}",
        kind=config.control.kind,
        levels=levels,
        default_level=levels.best_level,
        control=json.loads(config.control.model_dump_json()),
        lm_sha256=sha256_of(lm),
        format=prompt_format.spec,
        conversational=data.train[0].prompt.is_chat,
        source=config.data.source,
        schemes=data.fitted.to_dict(),
    )
    exported_tokenizer = prompt_format.exported_tokenizer()

    def write() -> None:
        with explain_write_errors(folder / MODEL, "make room; the same command writes the trained model again"):
            write_result(folder, meet, policy, exported_tokenizer, _unchanged_hub_model(config))

    world.from_main(write)
    failure_reason = peft_failure_reason(control)
    if failure_reason:
        reporter.message(f"no PEFT folders: {failure_reason}")
    world.from_main(lambda: _remove_checkpoints(config, folder))
    reporter.message(f"the run is in {folder}")


def _remove_checkpoints(config: RunConfig, folder: Path) -> None:
    """Remove those that hold model and optimizer states; the result is in RUN/model."""
    for stage in config.stages:
        if "lm" in stage.train and not config.batch.keep_checkpoints:
            remove_checkpoints(folder / stage.name)


def _unchanged_hub_model(config: RunConfig) -> str | None:
    """Return the hub name of the run's model if no stage trains it; ``None`` for a local or a trained model."""
    name = config.model.name
    is_trained = any("lm" in stage.train for stage in config.stages)
    return None if is_trained or name == EMBEDDED or Path(name).expanduser().exists() else name


def _announce(stage: StageSettings, folder: Path, num_examples: int, is_shared: bool, reporter: Reporter) -> None:
    """Report which parameters a stage will train, or that it is finished."""
    saved = checkpoints(folder)
    if is_shared:
        reporter.message(f"{stage.name}: reused from another run, whose stages so far are the same")
    elif (folder / DONE).is_file():
        reporter.message(f"{stage.name}: already finished")
    else:
        trained = " and ".join(stage.train)
        reporter.message(f"{stage.name}: training {trained} on {num_examples} examples, learning rate {stage.lr:g}")
        if saved:
            reporter.message(f"{stage.name}: continuing after step {checkpoint_step(saved[-1])}")


def _format(
    folder: Path, config: RunConfig, tokenizer: PreTrainedTokenizerBase, prepared: PreparedData | None
) -> PromptFormat:
    """Return the pinned prompt format of the run in ``folder``, else the format of ``prepared``, else a new one."""
    pinned = read_pinned(folder)
    if pinned is not None:
        return PromptFormat(tokenizer, FormatSpec.from_dict(pinned))
    return PromptFormat(tokenizer, prepared.spec) if prepared else pinned_format(config, tokenizer)


class _Accuracies:
    """``preference.json``: preference accuracy before training and after each stage; a resumed run appends.

    Args:
        path: The file.
        cache: Measurements by other runs.
        reporter: Shows each accuracy.
    """

    def __init__(self, path: Path, cache: StageCache | None, reporter: Reporter) -> None:
        self.path, self.cache, self.reporter = path, cache, reporter
        self._world = World.current()
        self.entries = self._world.from_main(lambda: json.loads(path.read_text()) if path.exists() else {})

    def record(self, moment: str, key: str, measure: Callable[[], PreferenceAccuracy]) -> None:
        """Measure the accuracy, unless this run or another run with the same stage ``key`` has measured it.

        Args:
            moment: When it is measured: ``before training`` or ``after NAME``.
            key: Key of the last stage.
            measure: Returns the accuracy.
        """
        if moment not in self.entries:
            shared = self.cache.accuracy_file(key) if self.cache else None
            if shared and shared.is_file():
                self.entries[moment] = json.loads(shared.read_text())
            else:
                self.entries[moment] = measure().to_dict()
                if shared:
                    write_atomic(shared, json.dumps(self.entries[moment]) + "\n")
            if self._world.is_main:
                write_atomic(self.path, json.dumps(self.entries, indent=2) + "\n")
        self.reporter.message(f"{moment}: {PreferenceAccuracy.from_dict(self.entries[moment])}")
