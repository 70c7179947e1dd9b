"""llama.cpp's server on a port: python bench/llama_process.py EXPORT TYPE PORT. The driver starts it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import xllamacpp

from meetlm.export.levels_file import ServedLevels
from meetlm.export.llama_server import server_params

SLOTS, POSITIONS = 8, 512
TYPES = {"f32": 0, "f16": 1}
"""Types of keys and values, by ggml's numbers."""


def main() -> None:
    """Serve an export until the process ends; requests choose the scales of the adapters."""
    folder, outtype, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    served = ServedLevels.read(folder)
    adapters = [folder / adapter.file for adapter in served.adapters]
    params = server_params(folder / served.model, adapters, SLOTS * POSITIONS, int(os.environ["OMP_NUM_THREADS"]))
    params.port, params.n_parallel = port, SLOTS
    params.cache_type_k = params.cache_type_v = TYPES[outtype]
    server = xllamacpp.Server(params)
    assert str(server.listening_address).endswith(f":{port}")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
