"""Reads an export with vLLM. A script for the Python of an environment that has vLLM and not meetlm.

Its arguments are two JSON files: the cases, which it reads, and the results, which it writes.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any


def read(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the token ids of each case's prompt, and the log-probs of its candidates; NaN where vLLM reports none.

    Args:
        job: ``engine`` has arguments of vLLM's ``LLM``; each of ``cases`` has ``messages`` or ``text``, the folder of
            its LoRA, the ids of a reply and of ``candidates`` at each position of the reply.
    """
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    engine = LLM(**job["engine"])
    loras: dict[str, LoRARequest] = {}
    results = []
    for case in job["cases"]:
        lora = loras.setdefault(case["lora"], LoRARequest(case["lora"], len(loras) + 1, case["lora"]))
        ask, prompt = (engine.chat, case["messages"]) if "messages" in case else (engine.generate, case["text"])
        (output,) = ask(prompt, SamplingParams(max_tokens=1), lora_request=lora, use_tqdm=False)
        ids = list(output.prompt_token_ids)
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=len(case["candidates"][0]))
        prompt_and_reply = TokensPrompt(prompt_token_ids=[*ids, *case["reply"]])
        (output,) = engine.generate(prompt_and_reply, sampling, lora_request=lora, use_tqdm=False)
        log_probs = [
            [row[token].logprob if token in row else math.nan for token in candidates]
            for row, candidates in zip(output.prompt_logprobs[len(ids) :], case["candidates"], strict=False)
        ]
        results.append({"ids": ids, "log_probs": log_probs})
    return results


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, which ends with it
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, on CPUs
    with open(sys.argv[1], encoding="utf-8") as file:
        outputs = read(json.load(file))
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(outputs, file)
