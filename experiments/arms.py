"""The arms of the experiments: each is run, or skipped, on its own and returns its metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measures import Measures, measure_pairs, measure_replies
from tasks import DATA, SCORERS, arm_name, demo_rows, file_name, pair_files, prompts_of, reply_files, write_rows

import meetlm
from meetlm.config.reporter import Reporter
from meetlm.data.example import Prompt
from meetlm.data.settings import DataSettings
from meetlm.evaluation.callables import CallableScorer
from meetlm.evaluation.reward import RewardModel
from meetlm.evaluation.settings import RewardData, RewardSettings, RewardTraining
from meetlm.generation.settings import Sampling
from meetlm.recipes.config import load_config
from meetlm.run.aligned import Aligned
from meetlm.run.dial import calibrate_run
from meetlm.run.folder import CONFIG, MEET
from meetlm.run.improve import improve
from meetlm.run.levels import NO_GUIDANCE, Guidance
from meetlm.run.reward_training import train_reward
from meetlm.run.score import read_pairs

RUNS = Path("runs/experiments")
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One unit of work.

    Attributes:
        name: File of its result, below ``results/``.
        settings: All that its result depends on, of the plan.
        run: Computes the metrics.
    """

    name: str
    settings: dict[str, Any]
    run: Callable[[], Metrics]


class Experiments:
    """The arms of a plan.

    Args:
        plan: The content of ``plan.yaml``.
        reporter: Shows messages and progress.
    """

    def __init__(self, plan: Mapping[str, Any], reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self.greedy = Sampling(**plan["generation"])
        self.sampled = Sampling(max_new_tokens=plan["generation"]["max_new_tokens"], **plan["sampled"])

    def arms(self) -> Iterator[Arm]:
        """Yield all arms, seed by seed, so that the first seed of everything is there first."""
        plan = self.plan
        for seed in plan["seeds"]:
            for task in plan["headline"]["tasks"]:
                for method in plan["headline"]["methods"]:
                    settings = {"task": plan["tasks"][task], "method": self._method(method)}
                    yield self._arm("headline", f"{task}-{method}", seed, settings, self.headline, task, method)
            for task in plan["dial"]["tasks"]:
                settings = {"task": plan["tasks"][task], "method": self._method("MEET"), "dial": plan["dial"]}
                yield self._arm("dial", task, seed, settings, self.dial, task)
            task = plan["quantiles"]["task"]
            settings = {"task": plan["tasks"][task], **plan["quantiles"]}
            yield self._arm("quantiles", task, seed, settings, self.quantiles)
            for is_left_out in (False, True):
                name = "left-out" if is_left_out else "all"
                yield self._arm("attributes", name, seed, plan["attributes"], self.attributes, is_left_out)
            for data, settings in plan["scope"]["data"].items():
                for scope in plan["scope"]["scopes"]:
                    used = {"data": settings, "settings": plan["scope"]["settings"], "scope": scope}
                    yield self._arm("scope", f"{data}-{scope}", seed, used, self.scope, data, scope)
            settings = {"task": plan["tasks"][plan["improve"]["task"]], **plan["improve"]}
            yield self._arm("improve", plan["improve"]["task"], seed, settings, self.improve)
            task = plan["best_of"]["task"]
            settings = {"task": plan["tasks"][task], "method": self._method("MEET"), **plan["best_of"]}
            yield self._arm("best-of", task, seed, settings, self.best_of)

    def _arm(self, experiment: str, name: str, seed: int, settings: Mapping[str, Any], run: Any, *args: Any) -> Arm:
        common = {key: self.plan[key] for key in ("train_prompts", "common", "generation", "sampled")}
        settings = {**common, **settings, "seed": seed}
        return Arm(arm_name(experiment, name, seed), settings, partial(run, *args, seed))

    def _method(self, name: str) -> dict[str, Any]:
        """Return the settings of a method, with those of the method that it starts from."""
        settings = dict(self.plan["methods"][name])
        if "starts_from" in settings:
            settings["starts_from"] = self._method(settings["starts_from"])
        return settings

    def headline(self, task: str, method: str, seed: int) -> Metrics:
        """Train a method; greedy replies at its best level."""
        return self._replies(meetlm.load(self._trained(task, method, seed)), task)

    def dial(self, task: str, seed: int) -> Metrics:
        """Replies of MEET at settings of level and guidance; the recommended ones are chosen on validation prompts."""
        plan, run = self.plan["dial"], self._trained(task, "MEET", seed)
        validation = DataSettings(source="pairs", eval_file=str(self._pairs(task)["validation"]))
        recommended = {}
        for by, grid in (("level", plan["levels"]), ("guidance", [0, *plan["guidance"]])):
            calibration = calibrate_run(
                run,
                scorers=[f"tasks:{self.plan['tasks'][task]['scorer']}"],
                by=by,
                grid=grid,
                sampling=self.greedy,
                data=validation,
                out=run / f"dial-{by}",
                reporter=self.reporter,
            )
            recommended[by] = calibration.dials[0].limits()
        model = meetlm.load(run)
        curves = {f"level {level:g}": self._replies(model, task, float(level)) for level in plan["levels"]}
        for strength in plan["guidance"]:
            curves[f"guidance {strength:g}"] = self._replies(model, task, 1.0, Guidance(strength))
        return {"recommended": recommended, "replies": curves}

    def best_of(self, seed: int) -> Metrics:
        """Rewards of sampled replies, and how the levels and a reward model score them."""
        plan = self.plan["best_of"]
        task, count = plan["task"], plan["replies"]
        run, scorer = self._trained(task, "MEET", seed), SCORERS[self.plan["tasks"][task]["scorer"]]
        model, prompts = meetlm.load(run), prompts_of(self.plan["tasks"][task], "test")
        repeated = [prompt for prompt in prompts for _ in range(count)]
        records = model.complete(
            repeated, model.levels.best_level, self.sampled, seed=seed, batch_size=64, reporter=self.reporter
        )
        texts = [record.completion for record in records]
        levels = model.score(repeated, texts, reporter=self.reporter)
        files = self._pairs(task)
        training = RewardTraining(
            data=RewardData(source="pairs", train_file=str(files["train"]), eval_file=str(files["test"])),
            epochs=plan["reward_epochs"],
            seed=seed,
        )
        trained = train_reward(training, RUNS / task / f"reward-model-seed{seed}", reporter=self.reporter)
        reward_model = RewardModel.load(RewardSettings(model=str(trained.folder)))
        asked = [model.parse_prompt(number, prompt) for number, prompt in enumerate(repeated)]
        replies = [text or " " for text in texts]
        held_out = DataSettings(source="pairs", eval_file=str(files["test"]))
        return {
            "reward": [scorer(None, text) for text in texts],
            "levels": [score.total for score in levels],
            "levels per token": [score.per_token for score in levels],
            "reward model": reward_model.score(reward_model.tokenize(asked, replies), reporter=self.reporter),
            "accuracy of the levels": self._pair_measures(model, held_out)["accuracy"],
            "accuracy of the reward model": [trained.accuracy.value, trained.accuracy.low, trained.accuracy.high],
        }

    def quantiles(self, seed: int) -> Metrics:
        """Five levels within a prompt, from scored replies; replies at each."""
        plan = self.plan["quantiles"]
        task = plan["task"]
        files = reply_files(task, self.plan["tasks"][task], self.plan["sampled"])
        levels = {"data.levels.scheme": "within-prompt", "data.levels.count": plan["count"]}
        data = {"data.train_file": str(files["train"]), "data.eval_file": str(files["test"])}
        run = self._train(plan["settings"], RUNS / task / f"quantiles-seed{seed}", seed, {**data, **levels})
        model = meetlm.load(run)
        return {level: self._replies(model, task, level) for level in model.levels}

    def attributes(self, is_left_out: bool, seed: int) -> Metrics:
        """Tone and length in one control; replies at each combination, one of which may be left out of training."""
        plan = self.plan["attributes"]
        file = DATA / "attributes" / ("left-out.jsonl" if is_left_out else "all.jsonl")
        write_rows(file, _combinations(plan["left_out"] if is_left_out else None))
        test = DATA / "attributes" / "test.jsonl"
        write_rows(test, demo_rows("test"))
        data = {"data.train_file": str(file), "data.eval_file": str(test)}
        run = self._train(plan["settings"], RUNS / "attributes" / f"{file.stem}-seed{seed}", seed, data)
        model = meetlm.load(run)
        cells = [{"tone": tone, "length": length} for tone in ("formal", "casual") for length in ("brief", "detailed")]
        return {"-".join(cell.values()): self._replies(model, "tone", cell) for cell in cells}

    def improve(self, seed: int) -> Metrics:
        """Rounds of rollouts and training: the reward of held-out prompts before training and after each."""
        plan = self.plan["improve"]
        task, folder = plan["task"], RUNS / plan["task"] / f"improve-seed{seed}"
        name = self.plan["tasks"][task]["scorer"]
        prompts = {split: prompts_of(self.plan["tasks"][task], split) for split in ("train", "test")}
        parsed = {split: [Prompt.from_json(prompt) for prompt in rows] for split, rows in prompts.items()}
        improve(
            self._config({**plan["settings"], "data.path": "unused"}, seed),
            parsed["train"][: plan["prompts"]],
            parsed["test"],
            CallableScorer(name, SCORERS[name]),
            folder,
            sampling=Sampling(max_new_tokens=plan["max_new_tokens"], **self.plan["sampled"]),
            rounds=plan["rounds"],
            replies=plan["replies"],
            batch_size=64,
            reporter=self.reporter,
        )
        rounds = range(plan["rounds"] + 1)
        rows = [(folder / f"round-{number}" / "measured.jsonl").read_text("utf-8").splitlines() for number in rounds]
        return {"reward": [[json.loads(row)["scores"][0] for row in lines] for lines in rows]}

    def scope(self, data: str, scope: str, seed: int) -> Metrics:
        """A LoRA of a scope: its accuracy on held-out pairs, NLL, and replies where their reward is exact."""
        settings = self.plan["scope"]["data"][data]
        task = settings.get("task")
        more = self._data(task) if task else settings["settings"]
        more = {**more, "control.scope": scope}
        run = self._train(self.plan["scope"]["settings"], RUNS / "scope" / f"{data}-{scope}-seed{seed}", seed, more)
        model = meetlm.load(run)
        metrics: Metrics = {"pairs": self._pair_measures(model, load_config(None, run / CONFIG, []).data)}
        return {**metrics, "replies": self._replies(model, task)} if task else metrics

    def _trained(self, task: str, method: str, seed: int) -> Path:
        """Return the run of a method, trained if it is missing."""
        settings = dict(self.plan["methods"][method])
        more = {**self._data(task), "data.limit_eval": 8}  # for the run's own report
        if start := settings.pop("starts_from", None):
            more["model.name"] = str((self._trained(task, start, seed) / "model").resolve())
        return self._train(settings, RUNS / task / f"{file_name(method)}-seed{seed}", seed, more)

    def _train(self, settings: Mapping[str, Any], folder: Path, seed: int, more: Mapping[str, Any]) -> Path:
        if not (folder / MEET).is_file():
            meetlm.train(self._config({**settings, **more}, seed), out=folder, reporter=self.reporter)
        return folder

    def _config(self, settings: Mapping[str, Any], seed: int) -> Any:
        settings = dict(settings)
        return load_config(settings.pop("recipe"), None, {**self.plan["common"], **settings, "seed": seed})

    def _pairs(self, task: str) -> dict[str, Path]:
        return pair_files(task, self.plan["tasks"][task], self.plan["sampled"])

    def _data(self, task: str) -> dict[str, str]:
        files = self._pairs(task)
        return {"data.train_file": str(files["train"]), "data.eval_file": str(files["test"])}

    def _replies(self, model: Aligned, task: str, level: Any = None, guidance: Guidance = NO_GUIDANCE) -> Measures:
        """Return the measures of greedy replies to the test prompts of a task, by default at the best level."""
        level = model.levels.best_level if level is None else level
        settings = self.plan["tasks"][task]
        prompts, scorer = prompts_of(settings, "test"), SCORERS[settings["scorer"]]
        return measure_replies(model, prompts, level, scorer, self.greedy, guidance)

    def _pair_measures(self, model: Aligned, data: DataSettings) -> Measures:
        examples, _ = read_pairs(data, model.format, None)
        return measure_pairs(model, examples)


def _combinations(left_out: Mapping[str, str] | None) -> Iterator[dict[str, Any]]:
    """Yield the demo's training rows without one combination of tone and length."""
    for row in demo_rows("train"):
        remaining = [
            (reply, attributes)
            for reply, attributes in zip(row["completions"], row["attributes"], strict=True)
            if attributes != left_out
        ]
        yield {
            "prompt": row["prompt"],
            "completions": [reply for reply, _ in remaining],
            "attributes": [attributes for _, attributes in remaining],
        }
