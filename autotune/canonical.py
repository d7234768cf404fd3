"""JSON in one spelling (RFC 8785), so that equal content has equal bytes and one SHA-256."""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn

import rfc8785

LARGEST = 64 * 1024
"""Bytes of the largest record that is read or written."""


class Malformed(ValueError):
    """Bytes that are no record; the message says why, in one line."""


def dumps(value: Any) -> bytes:
    """The one spelling of ``value``: numbers, strings, lists, mappings with string keys."""
    return rfc8785.dumps(value)


def digest(value: Any) -> str:
    """SHA-256 of the one spelling, in hexadecimal."""
    return hashlib.sha256(dumps(value)).hexdigest()


def loads(data: bytes) -> Any:
    """The value of JSON text of at most :data:`LARGEST` bytes.

    Raises:
        Malformed: it is larger, or no JSON; NaN, infinities and repeated names are none.
    """
    if len(data) > LARGEST:
        raise Malformed(f"it has {len(data)} bytes, over {LARGEST}")
    try:
        return json.loads(data, parse_constant=_refuse, object_pairs_hook=_unique)
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is no JSON: {type(error).__name__}") from None


def _refuse(constant: str) -> NoReturn:
    raise Malformed(f"{constant} is no number of JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("a name stands twice in one object")
    return found
