"""``evaluation.json``: what is written is read again, also without the fields that earlier versions lacked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from made_evaluation import made_evaluation
from meetlm.config.errors import ConfigError
from meetlm.evaluation.record import Evaluation


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    evaluation = made_evaluation(num_prompts=20)
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.read(tmp_path / "evaluation.json") == evaluation


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    made_evaluation(num_prompts=20).save(file)
    record = json.loads(file.read_text())
    del record["replicates"], record["settings"]["versions"]
    for comparison in record["comparisons"]:
        del comparison["by_replicate"], comparison["asked"]
    file.write_text(json.dumps(record))
    evaluation = Evaluation.read(file)
    assert evaluation.replicates == [] and evaluation.comparisons[0].by_replicate == {}


def test_a_record_that_cannot_be_read_is_refused_by_version(tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text('{"settings": {"versions": {"meetlm": "0.0.9"}}}')
    with pytest.raises(ConfigError, match=r"written by meetlm 0.0.9 in a form .*meet evaluate.* again"):
        Evaluation.read(file)
    file.write_text("[1")
    with pytest.raises(ConfigError, match="not an evaluation"):
        Evaluation.read(file)
