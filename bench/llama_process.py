"""llama.cpp's server on a port: python bench/llama_process.py EXPORT TYPE PORT. The driver starts it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import xllamacpp

from meetlm.export.levels_file import ServedLevels
from meetlm.export.llama_server import ERRORS_ONLY

SLOTS, POSITIONS = 8, 512
TYPES = {"f32": 0, "f16": 1}
"""Types of keys and values, by ggml's numbers."""


def main() -> None:
    """Serve an export until the process ends; requests choose the scales of the adapters."""
    folder, outtype, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    served = ServedLevels.read(folder)
    params = xllamacpp.CommonParams()
    params.model.path = str(folder / served.model)
    adapters = [str(folder / adapter.file) for adapter in served.adapters]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 0.0) for file in adapters]
    params.port, params.n_parallel, params.n_ctx = port, SLOTS, SLOTS * POSITIONS
    params.cache_type_k = params.cache_type_v = TYPES[outtype]
    params.n_gpu_layers, params.use_jinja, params.verbosity = 0, True, ERRORS_ONLY
    params.cache_ram_mib = 0  # this cache ignores the scales of adapters
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(os.environ["OMP_NUM_THREADS"])
    server = xllamacpp.Server(params)
    assert str(server.listening_address).endswith(f":{port}")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
