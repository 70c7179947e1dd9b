"""Fixtures and rules for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from meetlm.policy import loading, reference

FORBID_SKIPS = os.environ.get("MEETLM_FORBID_SKIPS") == "1"
"""Whether a skipped test fails, as in CI, which installs what the tests need."""
MAY_SKIP = frozenset({"gpu", "network", "own_environment"})
"""Markers of tests whose needs CI does not install."""
HH_SAMPLE = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep log-probs under references and hashes of models in the test's own folder, if it does not set MEETLM_CACHE.

    Without this a test could read log-probs that another test or the developer's own runs have cached.
    """
    before, original = os.environ.get("MEETLM_CACHE"), reference.cache_dir
    monkeypatch.setattr(
        reference,
        "cache_dir",
        lambda: tmp_path / "reference-cache" if os.environ.get("MEETLM_CACHE") == before else original(),
    )
    monkeypatch.setattr(loading, "hash_cache", lambda: tmp_path / "hash-cache")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where skips are forbidden."""
    report = yield
    if FORBID_SKIPS and report.skipped and not hasattr(report, "wasxfail") and not may_skip(item):
        report.outcome = "failed"
        report.longrepr = f"skipped, but MEETLM_FORBID_SKIPS is set: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole file into a failure where skips are forbidden."""
    report = yield
    if FORBID_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, but MEETLM_FORBID_SKIPS is set: {report.longrepr}"
    return report


def may_skip(item: pytest.Item) -> bool:
    """Whether a test needs what CI does not install."""
    markers = {marker.name for marker in item.iter_markers()}
    return bool(markers & MAY_SKIP) or ("hh" in markers and not HH_SAMPLE.is_dir())
