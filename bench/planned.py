"""Compare what ``meet plan`` prints with what ``meet train`` then takes, on the same arguments.

    python bench/planned.py pairs-meet-lora --data.path train.jsonl --data.holdout 50 --model.name smollm2

Prints one JSON object per stage with planned and taken seconds, and one with the planned peak memory of tensors and the
peak resident memory of the process, in MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """Plan, train, compare."""
    args = sys.argv[1:]
    meet = [sys.executable, "-m", "meetlm"]
    plan = json.loads(subprocess.run([*meet, "plan", *args, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen([*meet, "train", *args, "--out", f"{folder}/run"])
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"meet train failed with status {os.waitstatus_to_exitcode(status)}")
        for stage in plan["stages"]:
            taken = json.loads(Path(folder, "run", stage["name"], "stage.json").read_text())["seconds"]
            time = {name: round(seconds, 1) for name, seconds in stage["time"].items()}
            print(json.dumps({"stage": stage["name"], "planned_seconds": time, "seconds": taken}))
    peak = max(sum(stage["states"].values()) + stage["activations"] for stage in plan["stages"])
    print(json.dumps({"planned_tensors_mb": round(peak / 1e6), "process_mb": round(usage.ru_maxrss * 1024 / 1e6)}))


if __name__ == "__main__":
    main()
