"""Which rate for the first step on little data? Trains step 1 on the demo's set at several rates for each control.

    .venv/bin/python bench/rates.py [CONTROL RATE ...]

Prints preference accuracy and loss on held-out pairs, before training and after 100 steps of 2 pairs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from meetlm.cli.console import quiet_libraries
from meetlm.demo.show import demo_config
from meetlm.run.execute import execute

CONTROLS = {"soft-prompt": "{kind: soft-prompt, length: 20}", "lora": "{kind: lora, rank: 4}"}
RATES = {"soft-prompt": ["1e-3", "1e-2", "5e-2", "1e-1", "3e-1"], "lora": ["3e-4", "1e-3", "3e-3"]}


def main() -> None:
    """Run every control at every rate, or those asked for."""
    quiet_libraries()
    asked = {sys.argv[1]: sys.argv[2:]} if len(sys.argv) > 2 else RATES
    print(f"{'control':12s} {'rate':>6s} {'accuracy before':>22s} {'accuracy after':>22s} {'nats a token':>16s}")
    for kind, rates in asked.items():
        for rate in rates:
            stages = f"stages=[{{name: step1, train: [control], lr: {rate}}}]"
            config = demo_config([f"control={CONTROLS[kind]}", stages])
            with tempfile.TemporaryDirectory() as folder:
                execute(config, Path(folder) / "run")
                before, after = json.loads((Path(folder) / "run" / "preference.json").read_text()).values()
            cells = [
                f"{x['by_sum']['value']:.3f} [{x['by_sum']['low']:.3f}, {x['by_sum']['high']:.3f}]"
                for x in (before, after)
            ]
            print(
                f"{kind:12s} {rate:>6s} {cells[0]:>22s} {cells[1]:>22s} {before['nll']:7.3f} -> {after['nll']:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
