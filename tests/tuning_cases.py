"""Keys and records for tests of the store."""

from __future__ import annotations

import random
from typing import Any

from attnc.autotune.key import Key
from attnc.autotune.record import Observation, Pin

PARTS: dict[str, dict[str, Any]] = {
    "workload": {
        "spec": "ab" * 32,
        "direction": "forward",
        "dtype": "bf16",
        "inputs": ["i64"],
        "lse": False,
        "saved": [],
        "wants": [],
        "widths": [64, 64],
        "layout": "any strides",
        "deterministic": True,
        "bucket": {"heads": 1, "rows": 5, "keys": 5, "ratio": 1},
        "bucket_version": 1,
    },
    "space": {"backend": "fake", "templates": "cd" * 32, "version": 1},
    "hardware": {"vendor": "intel", "arch": "x86_64", "flags": ["avx2"], "cores": 2, "caches": ["L1 48K"]},
    "toolchain": {"compiler": "fake 1", "codegen": 1},
    "policy": {"caches": "warm", "mode": "eager", "estimator": "median", "version": 1},
}


def key(**changes: Any) -> Key:
    """A key; ``workload__dtype="f16"`` changes a field of a part."""
    parts = {name: dict(part) for name, part in PARTS.items()}
    for name, value in changes.items():
        part, _, inner = name.partition("__")
        parts[part][inner] = value
    return Key.of(parts)


def observation(of: Key | None = None, config: dict[str, Any] | None = None, **changes: Any) -> Observation:
    """A final measurement, as fast as the default."""
    fields: dict[str, Any] = {
        "status": "ok",
        "stage": "final",
        "run_id": "run-1",
        "tool_version": "0.1.0",
        "created": "2026-01-01T00:00:00Z",
        "times_us": (12.5, 13.0),
        "relative_to_default": 1.0,
        "exclusive": True,
    }
    return Observation(of or key(), config or {}, **{**fields, **changes})


def pin(of: Key | None = None, config: dict[str, Any] | None = None, reason: str = "because") -> Pin:
    return Pin(of or key(), config or {}, reason, "0.1.0", "2026-01-01T00:00:00Z")


def random_observation(generator: random.Random) -> Observation:
    """Any of a few keys and configs, so that merges meet the same ones."""
    of = key(workload__dtype=generator.choice(["bf16", "f16"]))
    config = generator.choice([{}, {"tile": 32}, {"tile": 64}])
    return observation(of, config, relative_to_default=generator.randint(50, 150) / 100 if config else 1.0)
