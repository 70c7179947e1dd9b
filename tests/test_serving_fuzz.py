"""Fuzz of the server: requests made from its own OpenAPI document, valid and invalid ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

import meetlm
from run_folders import config_for
from server import serving, wait_until_idle
from tiny import CHATML

SEED, EXAMPLES = 1, 60
"""Seed of the requests; number of random requests per path, besides those at the limits of each field."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
)


@pytest.mark.integration
def test_requests_from_the_openapi_document(tmp_path: Path) -> None:
    """No 5xx, no lost connection; each response conforms to the document, and requests that violate it get 4xx.

    Random model names would all be unknown: here the document states those of the run.
    """
    config = config_for(tmp_path, "qwen2", "lora", chat=True, template=CHATML)
    aligned = meetlm.load(meetlm.train(config, out=tmp_path / "run"))
    with serving(aligned, tmp_path / "feedback.jsonl", max_tokens=8, max_body=20_000, scorers=("words",)) as address:
        document = httpx2.get(f"{address}/openapi.json").json()
        for body in ("ChatRequest", "CompletionRequest"):
            model = document["components"]["schemas"][body]["properties"]["model"]
            model["enum"] = model.pop("examples")
            assert model["enum"] == ["tiny", "tiny:bad", "tiny:good"]
        file = tmp_path / "openapi.json"
        file.write_text(json.dumps(document))
        command = [Path(sys.executable).with_name("schemathesis"), "run", file, "--url", address]
        options = [f"--seed={SEED}", f"--max-examples={EXAMPLES}", f"--checks={','.join(CHECKS)}"]
        options += ["--continue-on-failure", "--request-timeout=20", "--no-color", "--generation-database=none"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        cases = re.search(r"(\d+) generated", done.stdout)
        assert cases is not None and int(cases[1]) > 500, done.stdout
        wait_until_idle(address)
        answered = set(re.findall(r'path="([^"]+)",status="200"', httpx2.get(f"{address}/metrics").text))
    assert answered >= document["paths"].keys() - {"/v1/models/{identifier}"}, "each path has answered with success"
