"""meetlm: align language models by controllable generation with parameter-efficient controls (MEET).

``meetlm.train`` trains a recipe, ``meetlm.load(RUN).generate(prompts, level="good")`` runs the trained model, and
``meetlm.evaluate`` compares completions. The command ``meet`` does the same.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meetlm.run.aligned import Aligned as Aligned
    from meetlm.run.aligned import load as load
    from meetlm.run.evaluate import evaluate as evaluate
    from meetlm.run.export import export_run as export_run
    from meetlm.run.train import train as train

_MODULES = {
    "Aligned": "meetlm.run.aligned",
    "evaluate": "meetlm.run.evaluate",
    "export_run": "meetlm.run.export",
    "load": "meetlm.run.aligned",
    "train": "meetlm.run.train",
}
__all__ = ["Aligned", "evaluate", "export_run", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds, ``meet --help`` should not."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'meetlm' has no attribute {name!r}")
