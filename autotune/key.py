"""The name of one tuning problem: five parts, each with a hash of its own, so that a miss can say what differs."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnc.autotune import bucket
from attnc.autotune.canonical import Malformed, digest
from attnc.autotune.hardware import hardware_of
from attnc.autotune.request import Request

PARTS = ("workload", "space", "hardware", "toolchain", "policy")
POLICY = 1
"""Raised when measuring changes so that figures cannot be compared with older ones."""


@dataclass(frozen=True, slots=True)
class Key:
    """``parts`` by name, JSON-able; ``digest`` is SHA-256 over the digests of the parts."""

    parts: Mapping[str, Mapping[str, Any]]
    digest: str

    @classmethod
    def of(cls, parts: Mapping[str, Mapping[str, Any]]) -> Key:
        """The key of these parts.

        Raises:
            Malformed: they are not the five, or not JSON-able.
        """
        if set(parts) != set(PARTS) or not all(isinstance(part, Mapping) for part in parts.values()):
            raise Malformed("its key has not the five parts")
        try:
            return cls(parts, digest({name: digest(part) for name, part in parts.items()}))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise Malformed(f"its key cannot be hashed: {type(error).__name__}") from None


def key_of(request: Request, hardware: Mapping[str, Any] | None = None) -> Key:
    """The key of a request, on this machine or on that of another key.

    Raises:
        TargetError: the device of the request is not here.
    """
    text, inputs, _, _ = request.meaning
    workload, backend = request.workload, request.backend
    names = {source.name: f"input {at}" for source, at in zip(request.program.inputs, inputs, strict=True)}
    dtypes = sorted(zip(inputs, workload.inputs, strict=True))
    place = bucket.bucket_of(request.sizes)
    return Key.of(
        {
            "workload": {
                "spec": hashlib.sha256(text.encode()).hexdigest(),
                "direction": request.direction,
                "dtype": workload.dtype,
                "inputs": [dtype for _, dtype in dtypes],
                "lse": workload.lse,
                "saved": list(workload.saved),
                "wants": sorted(names.get(name, name) for name in request.wants),
                "widths": list(request.widths),
                "layout": "any strides",
                "deterministic": not workload.unordered,
                "bucket": place._asdict(),
                "bucket_version": bucket.VERSION,
            },
            "space": {"backend": backend.name, "templates": templates(backend.families), "version": backend.spaces},
            "hardware": dict(hardware) if hardware else hardware_of(request.target),
            "toolchain": {"compiler": backend.toolchain(request.target), "codegen": backend.codegen},
            "policy": {
                "caches": "warm" if request.target.kind == "cpu" else "cold L2",
                "mode": "eager",
                "estimator": "median of interleaved rounds",
                "version": POLICY,
            },
        }
    )


@functools.cache
def templates(families: tuple[str, ...]) -> str:
    """A digest of the kernel code in these folders, and below."""
    total = hashlib.sha256()
    for family in families:
        found = importlib.util.find_spec(f"attnc.templates.{family}")
        for folder in (found and found.submodule_search_locations) or []:
            for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in (".py", ".cuh")):
                name = path.relative_to(folder).as_posix()
                total.update(f"{family}/{name}:{hashlib.sha256(path.read_bytes()).hexdigest()};".encode())
    return total.hexdigest()


def differences(a: Key, b: Key) -> Iterator[tuple[str, str, Any, Any]]:
    """Each part and field in which two keys differ, with both values."""
    for part in PARTS:
        ours, theirs = _flat(a.parts[part]), _flat(b.parts[part])
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                yield part, name, ours.get(name), theirs.get(name)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            found |= _flat(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found
