"""The registered export formats. Only this file knows which modules register one."""

import meetlm.export.gguf
import meetlm.export.merged
import meetlm.export.ollama
import meetlm.export.peft
import meetlm.export.vllm  # noqa: F401  registers its format
from meetlm.export.base import EXPORTERS

__all__ = ["EXPORTERS"]
