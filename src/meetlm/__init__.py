"""meetlm: align language models by controllable generation with parameter-efficient controls (MEET).

``meetlm.load(RUN).generate(prompts, level="good")`` runs a trained model; the command ``meet`` does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meetlm.run.aligned import Aligned as Aligned
    from meetlm.run.aligned import load as load

__all__ = ["Aligned", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: torch takes seconds, ``meet --help`` should not."""
    if name in __all__:
        from meetlm.run import aligned

        return getattr(aligned, name)
    raise AttributeError(f"module 'meetlm' has no attribute {name!r}")
