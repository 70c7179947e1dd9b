"""llama.cpp's server within this process, from the package xllamacpp, asked over HTTP as clients do.

N tokens of a reply, C candidate tokens per position.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meetlm.config.extras import require_extra
from meetlm.data.example import Prompt
from meetlm.export.parity import CANDIDATES, ParityCase

TOOL = "llama.cpp's server (xllamacpp)"
ERRORS_ONLY = 1
"""llama.cpp's verbosity that reports errors alone."""


def server_params(model: Path, adapters: Sequence[Path], num_positions: int, num_threads: int) -> Any:
    """Return xllamacpp's parameters of a server on the CPU, on which no adapter acts unless a request says so.

    Args:
        model: GGUF file of the model.
        adapters: GGUF files of the adapters, in the order of their ids.
        num_positions: Size of the context, over all slots.
        num_threads: Number of threads.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(file), 0.0) for file in adapters]
    params.n_ctx, params.n_gpu_layers = num_positions, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    params.use_jinja, params.verbosity = True, ERRORS_ONLY
    params.cache_ram_mib = 0  # this cache ignores the scales of adapters
    return params


class LlamaServer:
    """A running server; it ends when nothing refers to it.

    Args:
        model: GGUF file of the model.
        adapters: GGUF files of the adapters, in the order of their ids; no adapter acts unless a request says so.
        num_positions: Size of the context.

    Raises:
        ConfigError: The package xllamacpp is not installed.
    """

    def __init__(self, model: Path, adapters: Sequence[Path], num_positions: int) -> None:
        require_extra("xllamacpp", "llama-cpp", "reading GGUF files with llama.cpp")
        import xllamacpp

        params = server_params(model, adapters, num_positions, torch.get_num_threads())
        params.n_parallel, params.warmup = 1, False
        self._server = xllamacpp.Server(params)
        self.url = str(self._server.listening_address)

    def post(self, path: str, **body: Any) -> Any:
        """Return the JSON answer to a request."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def rendered_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt as the server computes them for chat completions, or for completions."""
        is_chat = prompt.is_chat
        text = self.post("/apply-template", messages=prompt.messages())["prompt"] if is_chat else prompt.text()
        return list(self.post("/tokenize", content=text, add_special=True, parse_special=True)["tokens"])

    def log_probs(self, ids: Sequence[int], case: ParityCase, lora: list[dict[str, Any]]) -> Tensor:
        """Return the log-probs [N, C] of a case's candidates after ``ids`` and the case's reply so far.

        NaN where the server reports none.

        Args:
            ids: Ids of the prompt.
            case: The reply and the candidates.
            lora: The field ``lora`` of the requests; adapters that it leaves out do not act.
        """
        rows = []
        for position, candidates in enumerate(case.candidates.tolist()):
            answer = self.post(
                "/completion",
                prompt=[*ids, *case.reply[:position]],
                n_predict=1,
                n_probs=2 * CANDIDATES,
                temperature=0,
                cache_prompt=True,
                lora=lora,
            )
            # the server reports no log-probs where its own token is a part of a character
            tokens = answer.get("completion_probabilities", [])
            log_probs = {entry["id"]: entry["logprob"] for token in tokens for entry in token["top_logprobs"]}
            rows.append([log_probs.get(candidate, float("nan")) for candidate in candidates])
        return torch.tensor(rows)
