"""Finished stages of earlier runs, for later runs of a sweep that begin in the same way.

Two runs have the same stage if everything up to its end is the same: model, rows, prompt format, control, seed,
optimizer, batch size and all stages so far. Step 1 of MEET is also step 1 of its ablation "first step only"; SFT is
the first stage of DPO.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from meetlm.config.files import MANIFEST, sync
from meetlm.recipes.config import RunConfig
from meetlm.training.checkpoints import WEIGHTS, checkpoints
from meetlm.training.order import data_seed
from meetlm.training.run_stage import DONE


def stage_key(config: RunConfig, data: str, index: int) -> str:
    """Return a hash of everything that determines the state after stage ``index`` (−1: before training).

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
        "levels": config.uses_levels,
        "seed": config.seed,
        "order": data_seed(config.seed),
        "optim": {k: v for k, v in resolved["optim"].items() if k != "lr"},  # the stages have it
        "pairs": config.batch.pairs,
        "stages": stages,
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def stage_keys(configs: Iterable[RunConfig], data: str) -> set[str]:
    """Return the keys of all stages of runs."""
    return {stage_key(config, data, index) for config in configs for index in range(len(config.stages))}


class StageCache:
    """A folder of finished stages, and of the preference accuracy measured after each.

    Args:
        folder: The folder; created.

    Attributes:
        keys_to_store: Keys of the stages to store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys_to_store = folder, set[str]()
        folder.mkdir(parents=True, exist_ok=True)

    def restore(self, key: str, stage: Path) -> bool:
        """Copy the stored stage ``key`` to the folder ``stage``, unless that exists; return whether it was copied."""
        stored = self.folder / key
        if not (stored / DONE).is_file() or stage.exists():
            return False
        partial = stage.with_name(f"{stage.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(stored, partial, copy_function=_link)
        partial.rename(stage)
        return True

    def store(self, key: str, stage: Path) -> None:
        """Store a finished stage if its key is in :attr:`keys_to_store`.

        Weights, metrics and record are stored, the optimizer's state is not.
        """
        stored = self.folder / key
        if key not in self.keys_to_store or (stored / DONE).is_file():
            return
        last = checkpoints(stage)[-1]
        partial = self.folder / f"{key}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        (partial / last.name).mkdir(parents=True)
        for name in (WEIGHTS, MANIFEST):
            _link(str(last / name), str(partial / last.name / name))
        for name in ("metrics.jsonl", DONE):
            shutil.copy2(stage / name, partial / name)
        sync(partial)
        shutil.rmtree(stored, ignore_errors=True)
        partial.rename(stored)

    def accuracy_file(self, key: str) -> Path:
        """Return the file of the preference accuracy after stage ``key``, which the first run to measure it writes."""
        return self.folder / f"{key}.json"

    def remove_others(self) -> None:
        """Remove the stored stages whose keys are not in :attr:`keys_to_store`."""
        for stored in self.folder.glob("*/"):
            if stored.name not in self.keys_to_store:
                shutil.rmtree(stored)


def _link(source: str, target: str) -> None:
    """Hard-link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
