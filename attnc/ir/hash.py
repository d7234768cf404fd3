"""The hash of what a program means."""

from __future__ import annotations

import hashlib

from attnc.ir.canonical import canonicalize
from attnc.ir.program import Program


def program_hash(program: Program) -> str:
    """SHA-256, in hexadecimal, of the canonical form: of the meaning, not of names, order and spelling.

    What callers name (inputs, parameters, extents) stands outside: :class:`~attnc.ir.canonical.Canonical` gives their
    order in the form.
    """
    return hashlib.sha256(canonicalize(program).text.encode()).hexdigest()
