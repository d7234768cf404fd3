"""The command ``attnc``: check, compile and explain specs, and say what works here.

Exit codes: 0 done; 1 the spec has errors; 2 the command line is wrong (no such file, unknown target, ...); 3 the spec
is right, but the target or this machine cannot do what it asks.
"""

from __future__ import annotations

from attnc.cli.main import app

__all__ = ["app"]
