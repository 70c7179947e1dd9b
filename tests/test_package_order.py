"""The order of imports between packages, and operations that only one package may use."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meetlm

ROOT = Path(meetlm.__file__).parent
PACKAGES = (
    ("config",),
    ("data",),
    ("controls",),
    ("objectives", "policy"),
    ("diagnostics",),
    ("training",),
    ("recipes",),
    ("generation",),
    ("evaluation",),
    ("report",),
    ("export",),
    ("run",),
    ("serving",),
    ("demo",),
    ("cli",),
)
"""A package imports only from itself and from packages above it; packages of one line do not import each other."""
RANK = {package: rank for rank, packages in enumerate(PACKAGES) for package in packages}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, anywhere in it."""
    parents = ("meetlm", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imports_between_packages(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for name in imported(ast.parse(text), path):
        parts = name.split(".")
        if parts[0] == "meetlm" and len(parts) > 1 and parts[1] in RANK:
            yield package_of(path), parts[1]


def allowed(importing: str, imported_package: str) -> bool:
    return importing == imported_package or RANK[imported_package] < RANK[importing]


def calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_packages_import_only_from_packages_above() -> None:
    assert {package_of(path) for path in FILES} <= RANK.keys(), "add the new package to PACKAGES"
    wrong = [
        f"{path.relative_to(ROOT)} imports from {imported_package}"
        for path in FILES
        for importing, imported_package in imports_between_packages(path, path.read_text())
        if not allowed(importing, imported_package)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("file", "text", "wrong"),
    [
        ("data/x.py", "from meetlm.policy.policy import Policy", True),
        ("data/x.py", "import meetlm.policy.policy", True),
        ("data/x.py", "from ..policy import policy", True),
        ("data/x.py", "from meetlm import policy", True),
        ("data/x.py", "def f():\n    from meetlm.cli import main", True),
        ("objectives/x.py", "from meetlm.policy.policy import TokenLogps", True),
        ("policy/x.py", "from meetlm.objectives.nll import nll", True),
        ("policy/x.py", "from meetlm.data.batch import collate", False),
        ("run/x.py", "from . import folder", False),
    ],
)
def test_wrong_imports_are_detected(file: str, text: str, wrong: bool) -> None:
    assert wrong == any(not allowed(*pair) for pair in imports_between_packages(ROOT / file, text))


def violations(path: Path, text: str) -> Iterator[str]:
    """Yield operations in a file that only another package may use."""
    package, used = package_of(path), set(calls(ast.parse(text)))
    if package != "cli":
        yield from used & {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
        yield from ["import click"] if "import click" in text else []
    if package != "training":
        yield from ["torch.optim"] if "torch.optim" in text else []
    if package != "generation":
        yield from (name for name in used if name.endswith(("torch.multinomial", "lm.generate")))
    if package not in ("policy", "generation"):
        yield from (name for name in used if name == "lm" or name.endswith((".lm", "lm.forward")))


def test_operations_are_used_only_in_their_package() -> None:
    problems = [f"{path.relative_to(ROOT)}: {name}" for path in FILES for name in violations(path, path.read_text())]
    assert problems == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("data/x.py", "print(1)", ["print"]),
        ("cli/x.py", "print(1)", []),
        ("run/x.py", "import click", ["import click"]),
        ("run/x.py", "torch.optim.SGD(a)", ["torch.optim"]),
        ("policy/x.py", "torch.multinomial(p, 1)", ["torch.multinomial"]),
        ("training/x.py", "self.lm(ids)", ["self.lm"]),
    ],
)
def test_wrong_operations_are_detected(file: str, text: str, expected: list[str]) -> None:
    assert list(violations(ROOT / file, text)) == expected


def test_help_is_quick() -> None:
    code = (
        "import sys\nfrom meetlm.cli import main\n"
        "try:\n    main(['{0}', '--help'] if '{0}' else ['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'scipy') if m in sys.modules]\n"
        "assert not heavy, heavy"
    )
    for command in ("", "train", "generate"):
        result = subprocess.run([sys.executable, "-c", code.format(command)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert "Usage" in result.stdout


def test_the_package_is_light_until_used() -> None:
    code = "import sys, meetlm as m; h = lambda: 'torch' in sys.modules; assert not h(); m.load; assert h()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_files_are_short() -> None:
    long = {str(path.relative_to(ROOT)): n for path in FILES if (n := len(path.read_text().splitlines())) > 420}
    assert long == {}
