"""Stages that runs of a sweep have in common: trained once, placed into the others as finished.

Two runs share a stage where everything up to its end is the same: model, rows, prompt format, control, seed, optimizer,
batch and every stage so far. MEET and its "first step only" share step 1; SFT is the first stage of DPO after SFT.
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
    """Return a hash of all that decides the state after stage ``index`` (−1: before training).

    Args:
        config: Of a run.
        data: :attr:`PreparedData.key`.
        index: Of the stage.
    """
    resolved = config.model_dump(mode="json")
    stages = [{k: v for k, v in stage.items() if k != "name"} for stage in resolved["stages"][: index + 1]]
    decides = {
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
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def common_stages(configs: Iterable[RunConfig], data: str) -> set[str]:
    """Return the keys of stages, and of the state before training, that two or more runs have."""
    counts = Counter(stage_key(config, data, index) for config in configs for index in range(-1, len(config.stages)))
    return {key for key, count in counts.items() if count > 1}


class StageShare:
    """A folder of finished stages.

    Args:
        folder: Created.
        wanted: Keys of the stages that are kept; every stage where ``None``.
    """

    def __init__(self, folder: Path, wanted: set[str] | None = None) -> None:
        self.folder, self._wanted = folder, wanted
        folder.mkdir(parents=True, exist_ok=True)

    def place(self, key: str, stage: Path) -> bool:
        """Put the finished stage ``key`` into a run's folder for it; whether there was one and none in its place."""
        ours = self.folder / key
        if not (ours / DONE).is_file() or stage.exists():
            return False
        partial = stage.with_name(f"{stage.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(ours, partial, copy_function=_link)
        partial.rename(stage)
        return True

    def keep(self, key: str, stage: Path) -> None:
        """Keep a finished stage for the runs to come: weights, metrics and record, not the optimizer's state."""
        ours = self.folder / key
        if not self._wants(key) or (ours / DONE).is_file():
            return
        last = checkpoints(stage)[-1]
        partial = self.folder / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / last.name).mkdir(parents=True)
        _link(str(last / WEIGHTS), str(partial / last.name / WEIGHTS))
        for name in ("metrics.jsonl", DONE):
            shutil.copy2(stage / name, partial / name)
        sync(partial)
        shutil.rmtree(ours, ignore_errors=True)
        partial.rename(ours)

    def measured(self, key: str) -> Path:
        """Return where the measurement after stage ``key`` is kept, of whatever run made it first."""
        return self.folder / f"{key}.json"

    def keep_only(self, keys: set[str]) -> None:
        """Drop the weights of every stage but these."""
        for ours in self.folder.glob("*/"):
            if ours.name not in keys:
                shutil.rmtree(ours)

    def _wants(self, key: str) -> bool:
        return self._wanted is None or key in self._wanted


def _link(source: str, target: str) -> None:
    """Link a file into place, or copy it where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
