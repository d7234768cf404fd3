"""A wheel, an editable install and a source distribution each give a working package, without a network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS: dict[str, str] = CONFIG["package-dir"]
DATA = {".lark", ".attn", ".typed", ".jsonl", ".cuh"}

BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"

USE = """
import pathlib, sys
import attnc, attnc.backends.protocol, attnc.grammar, attnc.templates
import torch
home = pathlib.Path(sys.argv[1])
for module in (attnc, attnc.grammar, attnc.templates, attnc.backends.protocol):
    assert home in pathlib.Path(module.__file__).resolve().parents, module.__file__
q = torch.randn(1, 2, 5, 16, dtype=torch.float64)
op = attnc.loads("attention causal { mask causal }")
expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
torch.testing.assert_close(op.reference(q, q, q), expected)
"""


def tree() -> dict[str, Path]:
    """Every file that belongs into the package, by its path inside an installation."""
    return {
        (Path(*name.split(".")) / path.relative_to(ROOT / folder)).as_posix(): path
        for name, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix == ".py" or path.suffix in DATA
    }


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """What setuptools' hook ``kind`` makes of ``source``."""
    return out / run(sys.executable, "-c", BUILD, kind, out, cwd=source).split()[-1]


def check_install(wheel: Path, environment: Path, home: Path | None = None) -> None:
    """Install ``wheel`` into a fresh environment and use it there; the package must stand under ``home``."""
    venv.create(environment, symlinks=True, with_pip=False)
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-c", USE, home or site, cwd=environment)
    assert "compile" in run(environment / "bin" / "attnc", "--help", cwd=environment)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a checkout holds, so that building leaves nothing in the tree."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.name.startswith(".") or entry.name in {"build", "dist"} or entry.suffix == ".egg-info":
            continue
        if entry.is_dir():
            shutil.copytree(entry, copy / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, copy)
    return copy


def test_every_package_is_listed() -> None:
    packages = {Path(name).parent.as_posix().replace("/", ".") for name in tree() if name.endswith(".py")}
    assert set(CONFIG["packages"]) == packages
    for name in packages:
        assert f"{name.replace('.', '/')}/__init__.py" in tree(), f"{name} has no __init__.py"


@pytest.mark.slow
def test_wheel(checkout: Path, tmp_path: Path) -> None:
    wheel = build("build_wheel", checkout, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == set(tree())
    check_install(wheel, tmp_path / "environment")


@pytest.mark.slow
def test_editable(checkout: Path, tmp_path: Path) -> None:
    check_install(build("build_editable", checkout, tmp_path), tmp_path / "environment", home=checkout)


@pytest.mark.slow
def test_source_distribution(checkout: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", checkout, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert {"specs", "tests", "docs", "LICENSE", "pyproject.toml"} <= {entry.name for entry in unpacked.iterdir()}
    check_install(build("build_wheel", unpacked, tmp_path), tmp_path / "environment")
