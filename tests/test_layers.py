"""Import arrows point one way, and attnc imports without any backend's compiler."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]

# What a module under the prefix on the left may import of attnc; the longest prefix that fits counts.
# A module may always import its own prefix. `None`: everything.
ALLOWED: dict[str, tuple[str, ...] | None] = {
    "attnc.grammar": (),
    "attnc.templates": (),
    "attnc.ir": ("attnc.grammar.source",),
    "attnc.plan": ("attnc.ir",),
    "attnc.check": ("attnc.grammar", "attnc.ir"),
    "attnc.analyse": ("attnc.ir", "attnc.plan"),
    "attnc.backends": ("attnc.grammar.source", "attnc.ir", "attnc.plan", "attnc.analyse", "attnc.templates"),
    "attnc": None,
}

# Who may import what no other part of attnc knows.
OWNERS: dict[str, tuple[str, ...]] = {
    "triton": ("attnc.backends", "attnc.templates"),
    "tvm": ("attnc.backends", "attnc.templates"),
    "optuna": ("attnc.autotune",),
    "fsspec": ("attnc.autotune",),
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package with its file."""
    for name, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((name, *(part for part in inner if part != "__init__"))), path


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Names a file imports, dotted, and whether that happens when the module is imported."""
    tree = ast.parse(path.read_text())
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield alias.name, id(node) not in lazy
            case ast.ImportFrom(module=str(module), names=names):
                for alias in names:
                    yield f"{module}.{alias.name}", id(node) not in lazy


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def rule_of(module: str) -> str:
    return max((prefix for prefix in ALLOWED if within(module, prefix)), key=len)


def backend_of(name: str) -> str | None:
    """The backend whose folder holds ``name``; ``None`` for what backends share."""
    match name.split("."):
        case ["attnc", "backends", backend, *_] if (ROOT / FOLDERS["attnc.backends"] / backend).is_dir():
            return backend
    return None


def test_imports_follow_the_layers() -> None:
    wrong = []
    for module, path in modules():
        rule = rule_of(module)
        allowed = ALLOWED[rule]
        for name, _ in imports(path):
            if not within(name, "attnc") or allowed is None:
                continue
            if not any(within(name, prefix) for prefix in (rule, *allowed)):
                wrong.append(f"{module} imports {name}")
            if backend_of(module) and backend_of(name) not in {None, backend_of(module)}:
                wrong.append(f"{module} imports another backend: {name}")
    assert not wrong, "\n".join(wrong)


def test_only_backends_know_their_compilers() -> None:
    wrong = []
    for module, path in modules():
        for name, eager in imports(path):
            tool = name.split(".")[0]
            if tool not in OWNERS:
                continue
            if not any(within(module, owner) for owner in OWNERS[tool]):
                wrong.append(f"{module} imports {name}")
            if eager and path.name == "__init__.py":
                wrong.append(f"{module} imports {name} at once: the entry of a folder must not need its compiler")
    assert not wrong, "\n".join(wrong)


def test_attnc_imports_without_compilers() -> None:
    program = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"triton", "tvm", "tvm_ffi", "optuna"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import attnc, attnc.cli
op = attnc.loads("attention full {}")
import torch
q = torch.randn(1, 1, 3, 16)
torch.testing.assert_close(op.reference(q, q, q), torch.nn.functional.scaled_dot_product_attention(q, q, q))
assert not {"triton", "tvm", "optuna"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
