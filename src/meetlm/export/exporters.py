"""The registered export formats. Only this file knows which modules register one."""

import meetlm.export.merged
import meetlm.export.peft  # noqa: F401  registers its format
from meetlm.export.base import EXPORTERS

__all__ = ["EXPORTERS"]
