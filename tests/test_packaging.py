"""The wheel: it has the package's data, and works in a clean environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
DATA = {".yaml", ".jsonl", ".html", ".css", ".js", ".jinja", ".typed", ".md", ".j2"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*build, folder, ROOT], check=True)
    (file,) = folder.glob("meetlm-*.whl")
    return file


@pytest.fixture(scope="module")
def meet(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a new environment that has the wheel, and borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    install = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, wheel], check=True, env=CLEAN)
    (here,) = {path for path in sys.path if path.endswith("site-packages")}
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{here}\n")
    return folder / "bin" / "meet"


def run(meet: Path, *args: str, folder: Path) -> str:
    result = subprocess.run([meet, *args], cwd=folder, env=CLEAN, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_has_all_data_files(wheel: Path) -> None:
    src = ROOT / "src"
    data = {str(path.relative_to(src)) for path in (src / "meetlm").rglob("*") if path.suffix in DATA}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert data and data <= names, sorted(data - names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(meet: Path, tmp_path: Path) -> None:
    where = run(meet.with_name("python"), "-P", "-c", "import meetlm; print(meetlm.__file__)", folder=tmp_path)
    assert where.startswith(str(meet.parents[1]))
    assert "Usage: meet demo" in run(meet, "demo", "--help", folder=tmp_path)
    assert "meet-lora" in run(meet, "recipes", folder=tmp_path)
    assert "kind: lora" in run(meet, "config", "pairs-meet-lora", "--preset", "small", folder=tmp_path)


@pytest.mark.slow
def test_the_demo_of_the_wheel_runs(meet: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    few = ("--stages.step1.epochs", "0.1", "--stages.step2.epochs", "0.05", "--limit", "2")
    printed = run(meet, "demo", "--out", "demo", "--quiet", *few, folder=tmp_path)
    assert "requested levels" in printed
    assert (tmp_path / "demo" / "meet.json").is_file()
    assert len(json.loads((tmp_path / "demo" / "demo.json").read_text())["grids"]) == 2
