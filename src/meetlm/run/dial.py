"""``meet dial``: sample held-out prompts at several settings of a level, score the replies, and record the safe range.

Completions, and their NLL under the base model, are stored as they come: the same call continues after an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meetlm.config.errors import ConfigError
from meetlm.config.journal import Journal, stored_or_computed
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.encoding import Encoded
from meetlm.data.example import Prompt, as_reply
from meetlm.data.levels import LevelSpace
from meetlm.data.prompt_format import PromptFormat
from meetlm.data.prompts import HeldOutPrompt
from meetlm.data.settings import DataSettings
from meetlm.evaluation.callables import CallableScorer, load_scorer
from meetlm.evaluation.dial import Curve, Dial, DialKind, Pareto, calibrate, check_size, find_front, repetition
from meetlm.evaluation.evaluate import Scorer
from meetlm.evaluation.measures import num_words
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.record import Problem
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.reward_scorer import RewardScorer
from meetlm.evaluation.settings import DialSettings, RewardSettings
from meetlm.evaluation.statistics import Clusters
from meetlm.generation.settings import Sampling
from meetlm.policy.loading import load_lm
from meetlm.policy.policy import Policy
from meetlm.run.aligned import Aligned, load, uncontrolled
from meetlm.run.completions import complete_resumably, held_out_rows, safe_name
from meetlm.run.folder import read_meet, read_model_settings, write_dial
from meetlm.run.levels import (
    NO_GUIDANCE,
    Guidance,
    Level,
    check_scale,
    dial_key,
    level_text,
    resolve_level,
    scales_of,
    weights_by_name,
)

FOLDER = "dial"
"""The folder of the results in a run."""
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
"""Settings for a control that mixes levels; others have a setting per level."""
GUIDANCE_GRID = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Strengths of guidance."""
PARETO_SETTINGS = 4
"""Settings of each attribute for the combinations of two."""
CHUNK = 64
"""Replies whose NLL is computed between two writes."""


def words(prompt: object, completion: str) -> float:
    """Length in words."""
    del prompt
    return float(num_words(completion))


def scorer_by_name(name: str) -> CallableScorer:
    """Return the scorer ``MODULE:FUNCTION``, or ``words`` for the length.

    Raises:
        ConfigError: There is no such function; see :func:`load_scorer`.
    """
    return CallableScorer("words", words) if name == "words" else load_scorer(name)


@dataclass(frozen=True)
class Calibration:
    """The result of :func:`calibrate_run`.

    Attributes:
        dials: A dial per attribute.
        pareto: Combinations of the first two attributes; ``None`` where fewer have a scorer.
        examples: A prompt, and its replies by setting, for each attribute.
        settings: What was run, for the report.
        problems: Replies without a score, and the like.
        default_level: Level of requests to the run without a level.
    """

    dials: list[Dial]
    pareto: Pareto | None
    examples: dict[str, tuple[str, dict[float, str]]]
    settings: dict[str, Any]
    problems: list[Problem]
    default_level: str | dict[str, float]


def calibrate_run(
    run: str | Path,
    *,
    scorers: Sequence[str] = (),
    reward: RewardSettings | None = None,
    by: DialKind = "level",
    grid: Sequence[float] | None = None,
    settings: DialSettings | None = None,
    sampling: Sampling | None = None,
    samples: int = 1,
    seed: int = 0,
    data: DataSettings | None = None,
    limit: int | None = 128,
    batch_size: int = 32,
    out: Path | None = None,
    reporter: Reporter = SILENT,
) -> Calibration:
    """Measure the safe range of the levels of a run, and record it in its ``meet.json``.

    A recommended level whose gain over the best level is significant becomes the default level of the run.

    Args:
        run: Folder of a finished run.
        scorers: ``[ATTRIBUTE=]MODULE:FUNCTION``, or ``words`` for the length; in a run with several attributes the one
            that an attribute is to move names it. Further scorers are side effects.
        reward: Reward model that scores; it comes before ``scorers``.
        by: What to turn: the level, or the strength of guidance at the best level, which any control allows.
        grid: Settings: 0 is the worst level, 1 the best, numbers beyond extrapolate; or strengths of guidance.
        settings: Limits of fluency.
        sampling: How to sample; greedy by default.
        samples: Samples per prompt and setting.
        seed: Seed of sampling and of the bootstrap.
        data: Data whose evaluation split has the prompts; the run's own where ``None``.
        limit: Number of prompts to use, the first ones.
        batch_size: Prompts per batch.
        out: Folder of the results; ``RUN/dial`` where ``None``.
        reporter: Shows messages and progress.

    Raises:
        RunError: ``run`` is not a finished run.
        ConfigError: A scorer or the grid cannot be used, or there are too few prompts.
    """
    folder = Path(run)
    meet = read_meet(folder)
    attributes = scales_of(meet.levels)
    by_attribute, others = _assign(scorers, meet.levels, reward, (out or folder / FOLDER) / "scores")
    aligned = load(folder)
    sampling = sampling or Sampling()
    rows = held_out_rows(aligned, folder, data, reporter)[:limit]
    work = _Sampler(aligned, rows, sampling, samples, seed, batch_size, out or folder / FOLDER, reporter)
    base = _BaseModel(folder, aligned, work.folder, reporter)
    limits = settings or DialSettings()
    dials, examples = [], {}
    for attribute, scorer in by_attribute.items():
        scale = attributes[attribute]
        default = GUIDANCE_GRID if by == "guidance" else _default_grid(aligned, scale)
        dial_settings = sorted(set(grid or default))
        check_size(dial_settings, len(rows))
        if by == "guidance":
            replies = [work.replies(scale[-1], Guidance(s, scale[0]) if s else NO_GUIDANCE) for s in dial_settings]
        else:
            replies = [work.replies(_level(attributes, {attribute: setting})) for setting in dial_settings]
        further = [*others, *(other for name, other in by_attribute.items() if name != attribute)]
        score = work.curve(scorer, replies)
        further_curves = [work.curve(other, replies) for other in further]
        nlls = [base.nlls(group) for group in replies]
        repeated = [[repetition(reply.text) for reply in group] for group in replies]
        cut: list[Column] = [[float(reply.is_cut) for reply in group] for group in replies]
        fluency = [
            (work.fluency_curve("NLL", "NLL under the base model, nats per token", nlls), limits.nll_increase),
            (work.fluency_curve("repetition", "share of repeated 4-grams", repeated), limits.repetition_increase),
            (work.fluency_curve("cut", "share of replies cut at the limit of tokens", cut), limits.cut_increase),
        ]
        dials.append(calibrate(attribute, dial_settings, work.clusters, score, fluency, further_curves, by=by))
        shown = {setting: reply[0].text for setting, reply in zip(dial_settings, replies, strict=True)}
        examples[attribute] = rows[0].prompt.text().strip(), shown
    pareto = _pareto(dials, attributes, by_attribute, work) if len(dials) > 1 and by == "level" else None
    calibrated = write_dial(folder, {dial_key(dial.attribute, by): dial.limits() for dial in dials})
    recorded = {
        "run": str(folder),
        "by": by,
        "scorers": {name: scorer.name for name, scorer in by_attribute.items()},
        "grid": {dial.attribute: dial.settings for dial in dials},
        "sampling": sampling.model_dump(mode="json"),
        "samples": samples,
        "seed": seed,
        "num_prompts": len(rows),
        "limits": limits.model_dump(mode="json"),
    }
    return Calibration(dials, pareto, examples, recorded, work.problems, calibrated.default_level)


def _assign(
    scorers: Sequence[str], levels: LevelSpace, reward: RewardSettings | None, folder: Path
) -> tuple[dict[str, Scorer], list[Scorer]]:
    """Return the scorer that each attribute is to move, and the others."""
    attributes = list(scales_of(levels))
    if not attributes:
        check_scale(levels, levels.attributes[0].name)
    by_attribute: dict[str, Scorer] = {}
    others: list[Scorer] = []
    if reward is not None:
        others.append(RewardScorer(RewardModel.load(reward), folder))
    for text in scorers:
        moved, equals, name = text.rpartition("=")
        scorer = scorer_by_name(name)
        if equals:
            check_scale(levels, moved)
            by_attribute[moved] = scorer
        else:
            others.append(scorer)
    if not by_attribute and len(attributes) == 1 and others:
        by_attribute[attributes[0]] = others.pop(0)
    if not by_attribute:
        names = ", ".join(attributes)
        example = f"{attributes[0]}=MODULE:FUNCTION" if names else "MODULE:FUNCTION, --scorer words or --reward MODEL"
        raise ConfigError(
            "no score to calibrate: pass --scorer " + example + (f"; attributes of the run: {names}" if names else "")
        )
    known = {scorer.name for scorer in (*by_attribute.values(), *others)}
    return by_attribute, others + ([] if "words" in known else [scorer_by_name("words")])


def _default_grid(aligned: Aligned, levels: Sequence[str]) -> list[float]:
    """Return :data:`GRID` where the control extrapolates, else a setting per level."""
    if len(levels) < 2:
        raise ConfigError(f"there is one level ({levels[0]}) and so no dial")
    try:
        aligned.weights(_level({"": levels}, {"": GRID[-1]}))
    except ConfigError:
        return [index / (len(levels) - 1) for index in range(len(levels))]
    return list(GRID)


def _level(attributes: Mapping[str, Sequence[str]], settings: Mapping[str, float]) -> Level:
    """Return the level with a setting per attribute."""
    weights: dict[str, float] = {}
    for attribute, setting in settings.items():
        weights |= weights_by_name(resolve_level(attributes[attribute], setting))
    only = next(iter(weights))
    return only if weights == {only: 1.0} else weights


def _pareto(
    dials: Sequence[Dial],
    attributes: Mapping[str, Sequence[str]],
    scorers: Mapping[str, Scorer],
    work: _Sampler,
) -> Pareto:
    """Return the combinations of safe settings of the first two dials."""
    first, second = dials[:2]
    pairs = [(a, b) for a in _some_safe_settings(first) for b in _some_safe_settings(second)]
    replies = [work.replies(_level(attributes, {first.attribute: a, second.attribute: b})) for a, b in pairs]
    columns = [work.curve(scorers[dial.attribute], replies).rising for dial in (first, second)]
    return find_front((first.attribute, second.attribute), pairs, columns[0], columns[1], work.clusters)


def _some_safe_settings(dial: Dial) -> list[float]:
    safe = [setting for setting in dial.settings if dial.safe[0] <= setting <= dial.safe[1]]
    step = max(1, round((len(safe) - 1) / (PARETO_SETTINGS - 1)))
    return sorted({*safe[::step], safe[-1]})


@dataclass(frozen=True, slots=True)
class Reply:
    """A sampled reply.

    Attributes:
        row: Its prompt.
        text: The reply.
        is_cut: Whether it was cut at the largest number of new tokens.
    """

    row: HeldOutPrompt
    text: str
    is_cut: bool


class _Sampler:
    """Samples replies at any level and scores them; cells are prompts times samples.

    Attributes:
        clusters: The prompt of each cell.
        problems: Problems of scored rows.
        folder: Folder of what is stored.
    """

    def __init__(
        self,
        aligned: Aligned,
        rows: Sequence[HeldOutPrompt],
        sampling: Sampling,
        samples: int,
        seed: int,
        batch_size: int,
        folder: Path,
        reporter: Reporter,
    ) -> None:
        self.aligned, self.rows, self.sampling, self.samples = aligned, rows, sampling, samples
        self.seed, self.batch_size, self.folder, self.reporter = seed, batch_size, folder, reporter
        self.clusters = Clusters([row for row in range(len(rows)) for _ in range(samples)], seed=seed)
        self.problems: list[Problem] = []

    def replies(self, level: Level, guidance: Guidance = NO_GUIDANCE) -> list[Reply]:
        """Return a reply per cell."""
        name = safe_name(level_text(level))
        name += f"-guidance{guidance.strength:g}" if guidance.strength else ""
        by_sample = [
            complete_resumably(
                self.aligned,
                [row.prompt for row in self.rows],
                level,
                self.sampling,
                self.folder / "completions" / f"{name}-seed{seed}.jsonl",
                guidance=guidance,
                seed=seed,
                batch_size=self.batch_size,
                reporter=self.reporter,
            )
            for seed in range(self.seed, self.seed + self.samples)
        ]
        return [
            Reply(row, completions[number].completion, completions[number].finish == "length")
            for number, row in enumerate(self.rows)
            for completions in by_sample
        ]

    def curve(self, scorer: Scorer, replies: Sequence[Sequence[Reply]]) -> Curve:
        """Return the scores of the replies at each setting."""
        values = []
        for group in replies:
            prompts = [reply.row.prompt for reply in group]
            chosen = [None if reply.row.chosen is None else reply.row.chosen.content.strip() for reply in group]
            texts, names = [reply.text for reply in group], [str(reply.row.origin) for reply in group]
            column, problems = scorer.score(prompts, texts, chosen, names, reporter=self.reporter)
            self.problems += [Problem(f"{scorer.name}: {p.description}", p.examples) for p in problems]
            values.append(column)
        return Curve.measured(scorer.name, scorer.description, scorer.higher_is_better, values, self.clusters)

    def fluency_curve(self, name: str, description: str, values: list[Column]) -> Curve:
        """Return the curve of a measure of fluency, of which less is better."""
        return Curve.measured(name, description, False, values, self.clusters)


class _BaseModel:
    """The language model that the run started from: how likely it finds a reply.

    It is loaded when a value is missing on the disk.
    """

    def __init__(self, run: Path, aligned: Aligned, folder: Path, reporter: Reporter) -> None:
        self.settings, self.aligned, self.reporter = read_model_settings(run), aligned, reporter
        self.file = folder / "nll.jsonl"
        self._policy: Policy | None = None

    def nlls(self, replies: Sequence[Reply]) -> Column:
        """Return the NLL per token of each reply; ``None`` for a reply without a token."""
        prompt_format = self.aligned.format
        rows = [encode_reply(prompt_format, reply.row.prompt, reply.text, is_cut=reply.is_cut) for reply in replies]
        keys = [hashlib.sha256(repr(row).encode()).hexdigest()[:24] for row in rows]
        by_key = {key: row for key, row in zip(keys, rows, strict=True) if row is not None}
        with Journal(self.file, {"model": self.settings.name}) as journal:
            nlls = stored_or_computed(journal, by_key, self._score, CHUNK)
        return [None if row is None else nlls[key] for key, row in zip(keys, rows, strict=True)]

    def _score(self, rows: Sequence[EncodedReply]) -> list[float]:
        if self._policy is None:
            self.reporter.message(f"loading the base model {self.settings.name}")
            lm, _ = load_lm(self.settings)
            self._policy = uncontrolled(lm, self.aligned.format)
        return nlls_per_token(self._policy, rows, self.reporter)


EncodedReply = tuple[tuple[int, ...], int]
"""Ids of a prompt and its reply, and where the reply starts."""


def encode_reply(prompt_format: PromptFormat, prompt: Prompt, text: str, *, is_cut: bool) -> EncodedReply | None:
    """Return the ids of a prompt and its reply, without EOS if the reply was cut; ``None`` for a reply without ids."""
    opened = prompt_format.prompt_ids(prompt)
    completion = prompt_format.completion_ids(prompt, as_reply(text))
    completion = completion[:-1] if is_cut else completion
    return ((*opened, *completion), len(opened)) if completion else None


def nlls_per_token(policy: Policy, rows: Sequence[EncodedReply], reporter: Reporter = SILENT) -> list[float]:
    """Return the NLL per token of each reply, in nats, under a model without a control."""
    sums, counts = policy.score([Encoded.of_one(ids, start, (1.0,)) for ids, start in rows], reporter=reporter)
    return [float(value) for value in -sums / counts]
