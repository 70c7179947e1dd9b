"""Stages that runs of a sweep have in common: trained once, then placed into the other runs as finished.

Two runs share a stage if everything up to its end is the same: model, rows, prompt format, control, seed, optimizer,
batch and all stages so far. MEET and its ablation "first step only" share step 1; SFT is the first stage of DPO.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from meetlm.config.files import sync
from meetlm.recipes.config import RunConfig
from meetlm.training.loop import WEIGHTS, checkpoints
from meetlm.training.order import data_seed
from meetlm.training.run_stage import DONE


def stage_key(config: RunConfig, data: str, index: int) -> str:
    """Return a hash of everything that decides the state after stage ``index`` (−1: before training).

    Args:
        config: Configuration of a run.
        data: :attr:`PreparedData.key` of its data.
        index: Index of the stage.
    """
    resolved = config.model_dump(mode="json")
    stages = [{k: v for k, v in stage.items() if k != "name"} for stage in resolved["stages"][: index + 1]]
    inputs = {
        "model": config.model.name,
        "data": data,
        "format": resolved["format"],
        "control": resolved["control"],
        "seed": config.seed,
        "order": data_seed(config.seed),
        "optim": {k: v for k, v in resolved["optim"].items() if k != "lr"},  # the stages have it
        "pairs": config.batch.pairs,
        "stages": stages,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def common_stages(configs: Iterable[RunConfig], data: str) -> set[str]:
    """Return the keys of the stages, and of the state before training, that two or more runs have in common."""
    counts = Counter(stage_key(config, data, index) for config in configs for index in range(-1, len(config.stages)))
    return {key for key, count in counts.items() if count > 1}


class StageShare:
    """A folder of finished stages.

    Args:
        folder: Folder of the stages; created.
        wanted: Keys of the stages to keep; all stages where ``None``.
    """

    def __init__(self, folder: Path, wanted: set[str] | None = None) -> None:
        self.folder, self._wanted = folder, wanted
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, key: str, stage: Path) -> bool:
        """Place the finished stage ``key`` at ``stage``, unless there is a folder; return whether it was placed."""
        stored = self.folder / key
        if not (stored / DONE).is_file() or stage.exists():
            return False
        partial = stage.with_name(f"{stage.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(stored, partial, copy_function=_link)
        partial.rename(stage)
        return True

    def keep(self, key: str, stage: Path) -> None:
        """Keep a finished stage for later runs: weights, metrics and record, without the optimizer's state."""
        stored = self.folder / key
        is_wanted = self._wanted is None or key in self._wanted
        if not is_wanted or (stored / DONE).is_file():
            return
        last = checkpoints(stage)[-1]
        partial = self.folder / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / last.name).mkdir(parents=True)
        _link(str(last / WEIGHTS), str(partial / last.name / WEIGHTS))
        for name in ("metrics.jsonl", DONE):
            shutil.copy2(stage / name, partial / name)
        sync(partial)
        shutil.rmtree(stored, ignore_errors=True)
        partial.rename(stored)

    def measured(self, key: str) -> Path:
        """Return the file of the preference accuracy after stage ``key``, written by the run that measured it first."""
        return self.folder / f"{key}.json"

    def keep_only(self, keys: set[str]) -> None:
        """Remove the weights of all stages but these."""
        for stored in self.folder.glob("*/"):
            if stored.name not in keys:
                shutil.rmtree(stored)


def _link(source: str, target: str) -> None:
    """Hard-link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
