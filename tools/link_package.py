"""Make ``build/typing/attnc``, a tree of links in which the sibling folders are subpackages of attnc.

The import system gets that mapping from the installed package; mypy follows folders only.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def link_package(root: Path = ROOT) -> Path:
    """Create or refresh the links, and return the folder to give to mypy as its path."""
    config = tomllib.loads((root / "pyproject.toml").read_text())
    mapping = dict(config["tool"]["setuptools"]["package-dir"])
    package = root / "build" / "typing" / "attnc"
    package.mkdir(parents=True, exist_ok=True)
    targets = {entry.name: entry for entry in (root / mapping.pop("attnc")).iterdir() if entry.name != "__pycache__"}
    targets |= {name.removeprefix("attnc."): root / folder for name, folder in mapping.items()}
    for old in package.iterdir():
        if old.name not in targets:
            old.unlink()
    for name, target in targets.items():
        link = package / name
        if not link.is_symlink():
            link.symlink_to(target)
    return package.parent


if __name__ == "__main__":
    link_package()
