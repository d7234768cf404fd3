"""``attnc store``: look at tuning results, and carry them about."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from attnc import __version__
from attnc.autotune.bundle import write_bundle
from attnc.autotune.canonical import Malformed
from attnc.autotune.explain import nearest, sentences
from attnc.autotune.hardware import name_of
from attnc.autotune.key import Key, key_of, templates
from attnc.autotune.lookup import find
from attnc.autotune.places import all_records, everything, user_store
from attnc.autotune.record import Conflict, Observation, Pin, Record, write
from attnc.autotune.record import name_of as config_name
from attnc.autotune.remote import Remote
from attnc.autotune.store import Store, read_file, read_named
from attnc.autotune.winner import ranking, winner
from attnc.backends.protocol import Config, Setting
from attnc.cli.console import Exit, fail, out, print_table
from attnc.cli.tune import Wanted, problems, title
from attnc.errors import ArgumentError
from attnc.targets import BACKENDS, backend_for, parse_target

LEFT_BEHIND = 3600.0
"""Seconds after which an unfinished file is nobody's any more."""


def ls(store: Store) -> None:
    """One line a key."""
    table = Table("key", "what", "on", "records", "best", "config", box=None)
    for key in store.key_names():
        if records := store.records(key):
            ranked = ranking([one for one in records if isinstance(one, Observation)])
            best = f"{1 / ranked[0][1]:.3f}" if ranked else ""
            hardware = name_of(dict(records[0].key.parts["hardware"]))
            table.add_row(key[:12], _what(records), hardware, str(len(records)), best, _chosen(records))
    print_table(table)


def show(store: Store, prefix: str) -> None:
    """Everything of a key, as JSON."""
    for one in store.records(_key(store, prefix)):
        print(json.dumps(json.loads(write(one)), indent=2))


def explain(wanted: Wanted, store: Store) -> None:
    """For every kernel: where its config comes from, or the nearest key and what differs."""
    for problem in problems(wanted):
        request = problem.request()
        key = key_of(request)
        out.print(f"{title(problem)}: {key.digest[:12]}", markup=False)
        if (found := find(request, key, [store.root])) is not None:
            out.print(f"  tuned: {config_name(found[1]) or 'the default'}, from {found[0]}", markup=False)
            continue
        near = nearest(key, (other for other, _ in everything(store)))
        out.print("  a miss; nothing was tuned at all" if near is None else "  a miss; the nearest key differs in")
        for line in sentences(near) if near else []:
            out.print(f"    {line}", markup=False)


def export(store: Store, path: Path) -> None:
    """Write a bundle, or into a folder one for each hardware."""
    by_file: dict[Path, list[Record]] = {}
    for one in store.all():
        name = f"{name_of(dict(one.key.parts['hardware']))}.jsonl"
        by_file.setdefault(path if path.suffix == ".jsonl" else path / name, []).append(one)
    for file, records in by_file.items():
        kept = all_records(file) if file.exists() else []
        out.print(f"{file}: {write_bundle(file, [*kept, *records])} records", markup=False)


def merge(sources: Iterable[Path], store: Store) -> None:
    """Add the records of stores and bundles; all of them can be read, or nothing is added."""
    records = [one for path in sources for one in all_records(path)]
    out.print(f"{store.root}: {store.merge(records)} new of {len(records)} records", markup=False)


def transfer(store: Store, url: str, options: dict[str, str], *, push: bool, dry: bool) -> None:
    """Push to a remote, or pull from it."""
    try:
        remote = Remote(url, **options)
        done = remote.push(store, dry=dry) if push else remote.pull(store, dry=dry)
    except (OSError, ImportError, ValueError) as error:
        fail(f"the remote {url} cannot be used: {error}", Exit.TARGET)
    word = ("would be " if dry else "") + ("pushed" if push else "pulled")
    refused = f", {done.refused} refused: they are no records" if done.refused else ""
    out.print(f"{done.moved} {word}, {done.present} there already{refused}", markup=False)


def verify(store: Store) -> None:
    """Read every file, and fail if any is not what it should be."""
    wrong = []
    count = 0
    for path in sorted((store.root / "v1").rglob("*.json")):
        if path.name == "key.json" or path.parent.name not in ("obs", "pins"):
            continue
        count += 1
        try:
            record = read_named(path.stem, read_file(path))
            kind = "pins" if isinstance(record, Pin) else "obs"
            if path != store.folder(record.key.digest) / kind / path.name:
                raise Malformed("it stands in the wrong place")
        except (Malformed, OSError) as error:
            wrong.append(f"{path}: {error}")
    for line in wrong:
        out.print(line, markup=False)
    for key in store.key_names():
        try:
            winner(store.records(key))
        except Conflict as conflict:
            wrong.append(key)
            out.print(f"{key[:12]}: {conflict}", markup=False)
    if wrong:
        fail(f"{len(wrong)} problems in {count} records", Exit.SPEC)
    out.print(f"{count} records, all as they were written")


def rerun(wanted: Wanted, store: Store) -> None:
    """Check and measure winners once more, here; fail if one is wrong or slower than the default by now."""
    from attnc.autotune import session

    worse = []
    with session.tuner(store) as made:
        for problem in problems(wanted):
            before = winner(store.records(key_of(problem.request()).digest))
            done = session.rerun(made, problem)
            after = winner(store.records(key_of(problem.request()).digest))
            text = "nothing is tuned" if done is None else f"{1 / done.best:.3f} times as fast as the default"
            out.print(f"{title(problem)}: {text}", markup=False)
            if before != after:
                worse.append(f"{title(problem)}: {config_name(before or {})} no longer wins")
    if worse:
        fail("; ".join(worse), Exit.SPEC)


def pin(store: Store, prefix: str, settings: Iterable[str], reason: str, remove: bool) -> None:
    """Decide for a config, whatever was measured; or take such decisions back."""
    key = _key(store, prefix)
    records = store.records(key)
    pins = store.folder(key) / "pins"
    for path in pins.glob("*.json") if pins.is_dir() else []:
        path.unlink()
    if remove:
        out.print(f"{key[:12]} is not pinned")
        return
    config = settings_of(settings)
    known = {config_name(one.config) for one in records if isinstance(one, Observation) and one.status == "ok"}
    if config and config_name(config) not in known:
        fail(f"{config_name(config)} was never measured for {key[:12]}, or it failed: tune first", Exit.USAGE)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    store.put(Pin(records[0].key, config, reason, __version__, now))
    out.print(f"{key[:12]} is pinned to {config_name(config) or 'the default'}", markup=False)


def gc(store: Store, stale: bool) -> None:
    """Remove what no look-up can use: unfinished and damaged files; ``stale`` also keys of other versions."""
    removed = 0
    for path in list((store.root / "v1").rglob(".new-*")):
        if time.time() - path.stat().st_mtime > LEFT_BEHIND:
            path.unlink(missing_ok=True)
            removed += 1
    for path in list((store.root / "v1").rglob("*.json")):
        if path.is_symlink() or (path.parent.name in ("obs", "pins") and not _is_record(path)):
            path.unlink(missing_ok=True)
            removed += 1
    for key in list(store.key_names()):
        records = store.records(key)
        if not records or (stale and not _is_current(records[0].key)):
            removed += _remove(store.folder(key))
    out.print(f"{removed} files removed")


def settings_of(settings: Iterable[str]) -> Config:
    """``block_m=64 family=stream`` as a config."""
    config: dict[str, Setting] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ArgumentError("config", f"`{text}`: write NAME=SETTING")
        config[name] = int(value) if value.lstrip("-").isdigit() else value
    return config


def store_at(path: Path | None) -> Store:
    """The store in a folder, or the user's."""
    return Store(path) if path else user_store()


def _key(store: Store, prefix: str) -> str:
    found = [key for key in store.key_names() if key.startswith(prefix)]
    if len(found) != 1:
        raise ArgumentError("key", f"{len(found)} keys begin with `{prefix}` in {store.root}")
    return found[0]


def _what(records: list[Record]) -> str:
    workload = records[0].key.parts["workload"]
    names = {str(one.environment.get("spec", "")) for one in records if isinstance(one, Observation)}
    widths = ":".join(map(str, workload["widths"]))
    bucket = workload["bucket"]
    shape = f"heads {8 ** bucket['heads']} M {4 ** bucket['rows']} N {4 ** bucket['keys']}"
    return f"{'/'.join(sorted(names))} {workload['direction']} {workload['dtype']} D{widths} {shape}"


def _chosen(records: list[Record]) -> str:
    try:
        config = winner(records)
    except Conflict as conflict:
        return str(conflict)
    pinned = " (pinned)" if any(isinstance(one, Pin) for one in records) else ""
    return "" if config is None else (config_name(config) or "default") + pinned


def _is_record(path: Path) -> bool:
    try:
        read_named(path.stem, read_file(path))
    except (Malformed, OSError):
        return False
    return True


def _is_current(key: Key) -> bool:
    """Whether this version of attnc and its compilers can make such a key."""
    space, toolchain = key.parts["space"], key.parts["toolchain"]
    name = str(space.get("backend"))
    if name not in BACKENDS:
        return False
    target = parse_target("cpu" if name == "tvm" else "cuda")
    backend = backend_for(target, name, compiles=False)
    mine = {"backend": name, "templates": templates(backend.families), "version": backend.spaces}
    return space == mine and toolchain == {"compiler": backend.toolchain(target), "codegen": backend.codegen}


def _remove(folder: Path) -> int:
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    for path in files:
        path.unlink(missing_ok=True)
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        path.rmdir()
    folder.rmdir()
    return len(files)
