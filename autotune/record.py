"""What a store keeps: observations, each of one config in one tuning run, and pins. They never change."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from attnc.autotune.canonical import LARGEST, Malformed, dumps, loads
from attnc.autotune.key import Key
from attnc.backends.protocol import Config, Setting

SCHEMA = 1
STATUSES = ("ok", "compile_error", "oom", "timeout", "crash", "wrong")
STAGES = ("screen", "final")
WORD = re.compile(r"[A-Za-z0-9_.+-]{1,40}")
"""What a setting that is no number may look like: no path, no code."""
_HEX = re.compile(r"[0-9a-f]{64}")
_MOST_SETTINGS, _MOST_TIMES, _LONGEST = 64, 1000, 400


@dataclass(frozen=True, slots=True)
class Observation:
    """One config, measured or failed in one run.

    Attributes:
        key: what was tuned.
        config: empty for the default.
        status: how it ended.
        stage: ``screen`` for a short look, ``final`` for what ran interleaved with the default; only those rank.
        times_us: of single calls.
        relative_to_default: its time over that of the default in the same run; below 1 is faster.
        check: reference, shapes, largest errors and tolerance of the comparison with the reference.
        clocks: least and most clock seen, in MHz.
        exclusive: whether nothing else was on the device.
        environment: what is not keyed.
        run_id: the tuning run.
        tool_version: of attnc.
        created: in UTC, ISO 8601.
    """

    key: Key
    config: Config
    status: str
    stage: str
    run_id: str
    tool_version: str
    created: str
    times_us: tuple[float, ...] = ()
    relative_to_default: float | None = None
    check: Mapping[str, Any] = field(default_factory=dict)
    clocks: Mapping[str, float] = field(default_factory=dict)
    exclusive: bool = False
    environment: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pin:
    """A person's decision: this config, whatever was measured."""

    key: Key
    config: Config
    reason: str
    tool_version: str
    created: str


class Conflict(ValueError):
    """Two pins of one key name different configs."""


Record: TypeAlias = Observation | Pin
_OBSERVED = tuple(Observation.__dataclass_fields__)
_PINNED = tuple(Pin.__dataclass_fields__)


def write(record: Record) -> bytes:
    """The bytes of a record, which its digest names."""
    names = _PINNED if isinstance(record, Pin) else _OBSERVED
    fields = {name: getattr(record, name) for name in names if name != "key"}
    data = dumps(
        {
            **{name: list(x) if isinstance(x, tuple) else x for name, x in fields.items()},
            "schema": SCHEMA,
            "kind": "pin" if isinstance(record, Pin) else "observation",
            "config": dict(record.config),
            "key": record.key.digest,
            "key_parts": dict(record.key.parts),
        }
    )
    if len(data) > LARGEST:
        raise ValueError(f"a record of {len(data)} bytes, over {LARGEST}")
    return data


def read(data: bytes) -> Record:
    """The record that :func:`write` wrote.

    Raises:
        Malformed: it did not; or it is of a newer schema, or its key does not follow from the parts.
    """
    value = loads(data)
    if not isinstance(value, dict):
        raise Malformed("it is no object")
    schema = value.pop("schema", None)
    if type(schema) is not int or schema != SCHEMA:
        raise Malformed(f"it has schema {str(schema)[:20]}, this version reads {SCHEMA}")
    kind, named, parts = value.pop("kind", None), value.pop("key", None), value.pop("key_parts", None)
    if not isinstance(parts, dict):
        raise Malformed("it has no key")
    key = Key.of(parts)
    if key.digest != named:
        raise Malformed("its key does not follow from its parts")
    config = _config(value.pop("config", None))
    match kind:
        case "observation":
            return _observation(key, config, value)
        case "pin":
            _only(value, _PINNED)
            return Pin(key, config, *(_text(value.get(name), name) for name in ("reason", "tool_version", "created")))
    raise Malformed("it is neither an observation nor a pin")


def _observation(key: Key, config: Config, value: dict[str, Any]) -> Observation:
    _only(value, _OBSERVED)
    status, stage = value.get("status"), value.get("stage")
    if status not in STATUSES or stage not in STAGES:
        raise Malformed("its status or stage is none of those known")
    times, relative = value.get("times_us", []), value.get("relative_to_default")
    if not isinstance(times, list) or len(times) > _MOST_TIMES or not all(map(_positive, times)):
        raise Malformed("its times are not positive numbers")
    if relative is not None and not _positive(relative):
        raise Malformed("its ratio to the default is no positive number")
    if status == "ok" and (relative is None or not times):
        raise Malformed("it is ok and has no times")
    if not isinstance(value.get("exclusive"), bool):
        raise Malformed("`exclusive` is no truth value")
    details: dict[str, Any] = {name: value.get(name) for name in ("check", "clocks", "environment")}
    if not all(isinstance(x, dict) for x in details.values()):
        raise Malformed("check, clocks or environment is no object")
    run_id, tool_version, created = (_text(value.get(name), name) for name in ("run_id", "tool_version", "created"))
    return Observation(
        key,
        config,
        status,
        stage,
        run_id,
        tool_version,
        created,
        tuple(map(float, times)),
        None if relative is None else float(relative),
        details["check"],
        details["clocks"],
        value["exclusive"],
        details["environment"],
    )


def _only(value: dict[str, Any], names: tuple[str, ...]) -> None:
    if unknown := sorted(value.keys() - set(names)):
        raise Malformed(f"it has an unknown field {unknown[0][:40]!r}")


def _config(value: Any) -> Config:
    if not isinstance(value, dict) or len(value) > _MOST_SETTINGS:
        raise Malformed("its config is no small object")
    found: dict[str, Setting] = {}
    for name, setting in value.items():
        number = type(setting) is int and abs(setting) < 2**31
        if not WORD.fullmatch(name) or not (number or (isinstance(setting, str) and WORD.fullmatch(setting))):
            raise Malformed(f"its config sets {name[:40]!r} to what is neither a number nor a word")
        found[name] = setting
    return found


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST or not value.isprintable():
        raise Malformed(f"`{name}` is no short text")
    return value


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0


def is_digest(name: str) -> bool:
    """Whether ``name`` is a SHA-256 in hexadecimal."""
    return _HEX.fullmatch(name) is not None


def name_of(config: Config) -> str:
    """One line for a config, by which configs are ordered: the default first."""
    return dumps(dict(config)).decode() if config else ""
