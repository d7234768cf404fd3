"""An attention compiler: a spec in, a torch operator out.

>>> import attnc
>>> op = attnc.loads("attention local { const W = 128  mask causal and i - j < W }", W=64)
>>> out = op(q, k, v)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnc.api import compile, load, loads
    from attnc.errors import ArgumentError, BundleError, TargetError, UnsupportedError
    from attnc.grammar.diagnostic import SpecError
    from attnc.op import Op

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "BundleError",
    "Op",
    "SpecError",
    "TargetError",
    "UnsupportedError",
    "__version__",
    "compile",
    "load",
    "loads",
]

_HOME = {
    "ArgumentError": "attnc.errors",
    "BundleError": "attnc.errors",
    "Op": "attnc.op",
    "SpecError": "attnc.grammar.diagnostic",
    "TargetError": "attnc.errors",
    "UnsupportedError": "attnc.errors",
    "compile": "attnc.api",
    "load": "attnc.api",
    "loads": "attnc.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module `attnc` has no attribute `{name}`")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
