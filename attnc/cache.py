"""Kernels that were built before: in this process, and on disk.

On disk an entry is a folder named by the key, with what :meth:`Kernel.save` wrote and a manifest that lists the
digest of every file. An entry appears by one rename, so readers never see half of one; whatever is wrong with an
entry makes it a miss, and the next build replaces it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from attnc.backends.protocol import Backend, BackwardKernel, Choosing, Kernel, Router, Selector, Unsavable

MANIFEST = "manifest.json"
_T = TypeVar("_T")
_K = TypeVar("_K", bound=Kernel | BackwardKernel | Router | Selector)
_Load: TypeAlias = Callable[[Path, Mapping[str, Any]], _K]
_log = logging.getLogger("attnc")


def folder() -> Path:
    """Where the cache stands: ``ATTNC_CACHE_DIR``, or the usual place of the system for the user's caches."""
    if given := os.environ.get("ATTNC_CACHE_DIR"):
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("attnc", appauthor=False))


@functools.cache
def fingerprint() -> str:
    """A digest of the compiler itself: the state of every source file of the package, by size and time of change."""
    import attnc

    digest = hashlib.sha256(attnc.__version__.encode())
    roots = list(attnc.__path__)
    for sibling in ("grammar", "templates", "backends"):
        spec = importlib.util.find_spec(f"attnc.{sibling}")
        roots += (spec and spec.submodule_search_locations) or []
    for root in roots:
        for path in sorted(Path(root).rglob("*")):
            if path.suffix in (".py", ".lark", ".attn", ".cuh"):
                state = path.stat()
                digest.update(f"{path}:{state.st_size}:{state.st_mtime_ns};".encode())
    return digest.hexdigest()


def key_of(*parts: Any) -> str:
    """The name of what is determined by ``parts`` (JSON-able) and this version of the compiler."""
    text = json.dumps([fingerprint(), *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def digest_of(text: str) -> str:
    """The name of what is determined by a text alone."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class KernelCache:
    """Kernels by key. ``built`` counts the compilations that this process had to do."""

    def __init__(self) -> None:
        self.built = 0
        self._memory: dict[str, Any] = {}

    def get(self, key: str, backend: Backend, build: Callable[[], Kernel]) -> Kernel:
        """The kernel called ``key``: from memory, from disk by ``backend.load``, or from ``build``, then kept."""
        return self._get(key, backend.name, backend.load, build)

    def get_backward(self, key: str, backend: Backend, build: Callable[[], BackwardKernel]) -> BackwardKernel:
        """The same for the kernel of a backward."""
        return self._get(key, backend.name, backend.load_backward, build)

    def get_selector(self, key: str, backend: Choosing, build: Callable[[], Selector]) -> Selector:
        """The same for kernels that choose."""
        return self._get(key, backend.name, backend.load_selector, build)

    def get_router(self, key: str, backend: Backend, build: Callable[[], Router]) -> Router:
        """The same for what chooses."""
        return self._get(key, backend.name, backend.load_router, build)

    def _get(
        self, key: str, backend: str, load: Callable[[Path, Mapping[str, Any]], _K], build: Callable[[], _K]
    ) -> _K:
        if key not in self._memory:
            kernel = read_entry(folder() / "kernels" / key, backend, load)
            if kernel is None:
                kernel = build()
                self.built += 1
                write_entry(folder() / "kernels" / key, kernel, backend)
            self._memory[key] = kernel
        found: _K = self._memory[key]
        return found

    def clear(self) -> None:
        """Forget the kernels of this process; those on disk stay."""
        self._memory.clear()


kernels = KernelCache()
"""The cache of this process."""


def remember(key: str, make: Callable[[], _T]) -> _T:
    """What ``make`` gives, kept on disk under ``key`` for the next process as :mod:`attnc.kept` writes it."""
    from attnc import kept

    path = folder() / "programs" / key
    with contextlib.suppress(Exception):  # whatever is wrong with it, making it anew mends it
        digest, text = path.read_text(encoding="utf-8").split("\n", 1)
        if hashlib.sha256(text.encode()).hexdigest() == digest:
            found: _T = kept.read(text)
            return found
    made = make()
    with contextlib.suppress(OSError, RecursionError):
        text = kept.write(made)
        if kept.read(text) == made:
            write_file(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}".encode())
    return made


def write_file(path: Path, data: bytes) -> None:
    """A file of the user's own, which nobody sees half of."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def read_entry(entry: Path, backend: str, load: _Load[_K]) -> _K | None:
    """The kernel in the folder ``entry``, or ``None`` if there is none or it is damaged."""
    if not entry.is_dir():
        return None
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        if damaged := changed_files(entry, manifest["files"]):
            raise ValueError(f"{damaged[0]} is not what was written")
        if manifest["backend"] != backend:
            raise ValueError(f"it is of backend {manifest['backend']}")
        return load(entry, manifest["kernel"])
    except Exception as error:  # whatever is wrong with an entry, building it anew mends it
        _log.warning("dropping the cache entry %s: %s", entry, error)
        shutil.rmtree(entry, ignore_errors=True)
        return None


def write_entry(entry: Path, kernel: Kernel | BackwardKernel | Router | Selector, backend: str) -> None:
    """Save ``kernel`` as the folder ``entry``; where the disk refuses, go on without."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    except OSError as error:
        _log.warning("no cache at %s: %s", entry.parent, error)
        return
    try:
        save_kernel(made, kernel, backend)
        with contextlib.suppress(OSError):  # another process was first
            made.rename(entry)
    except Unsavable:
        pass
    except OSError as error:
        _log.warning("the cache could not keep %s: %s", entry, error)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def save_kernel(where: Path, kernel: Kernel | BackwardKernel | Router | Selector, backend: str) -> dict[str, Any]:
    """Write ``kernel`` and its manifest into an empty folder; the manifest is also returned."""
    saved = kernel.save(where)
    manifest = {"backend": backend, "kernel": dict(saved), "files": digests(where)}
    (where / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    return manifest


def digests(where: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path, the manifest left out."""
    files = sorted(path for path in where.rglob("*") if path.is_file() and path != where / MANIFEST)
    return {path.relative_to(where).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changed_files(where: Path, expected: Mapping[str, str]) -> list[str]:
    """Names of the files below ``where`` that are missing or not what ``expected`` says."""
    found = digests(where)
    return [name for name, digest in expected.items() if found.get(name) != digest]
