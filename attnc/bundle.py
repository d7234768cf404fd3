"""Bundles: a folder with the kernels of one program for one target, which runs where no compiler is.

=================== =====================================================================================
``manifest.json``    format version, target, what each kernel is for, the digest of every file
``program.txt``      the program, as :mod:`attnc.ir.printer` writes it: what ``op.reference`` needs
``spec.attn``        the text it was compiled from, for people
``kernels/NAME/``    what the backend saved
``sources/NAME/``    generated source and assembly, for people
``parts/DIGEST/``    the same two folders for each attention that a program with routes, branches or windows is made of
=================== =====================================================================================
"""

from __future__ import annotations

import copy
import json
import platform
import shutil
import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from attnc import cache
from attnc.analyse.key_ranking import KeyRanking
from attnc.analyse.ranking import Ranking
from attnc.autotune import bucket
from attnc.autotune.bucket import Bucket
from attnc.backends.protocol import Backend, Kernel, Router, Selector, Target, Workload
from attnc.errors import BundleError
from attnc.ir.nodes import Input
from attnc.ir.printer import print_program
from attnc.ir.program import Program
from attnc.routing.lower import is_choice
from attnc.runtime import Sizes, Widths
from attnc.targets import backend_for, target_of_device

KIND = "attnc bundle"
FORMAT = 2
"""1 had neither kernels for buckets of sizes nor parts."""
MANIFEST = cache.MANIFEST

WIDER: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bf16", "f32", "f64"),
    "f16": ("f16", "f32", "f64"),
    "f32": ("f32", "f64"),
    "i32": ("i32", "i64"),
}
"""The element types that hold every value of another: what an input may be handed over as."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What one kernel of a bundle is for: calls of any sizes, or tuned for those in ``buckets``."""

    widths: Widths
    workload: Workload
    buckets: tuple[Bucket, ...] = ()

    @property
    def name(self) -> str:
        d, e = self.widths
        name = f"{self.workload.dtype}-d{d}-e{e}" + ("-lse" if self.workload.lse else "")
        return name + "".join(f"-h{one.heads}m{one.rows}n{one.keys}r{one.ratio}" for one in self.buckets[:1])


def write_bundle(
    where: Path,
    program: Program,
    text: str,
    target: Target,
    backend: str,
    kernels: Mapping[Variant, Kernel],
    parts: Sequence[tuple[Program, Mapping[Variant, Kernel]]] = (),
) -> None:
    """Write a bundle as the folder ``where``, in one step: nothing or a whole one stands there afterwards.

    ``parts`` are the attentions that ``program`` is made of, with their kernels, if it has routes, branches or windows.

    Raises:
        BundleError: something that is not a bundle stands there already.
    """
    if where.exists() and any(where.iterdir() if where.is_dir() else [where]) and not is_bundle(where):
        raise BundleError(f"{where} exists and is no bundle: name another folder")
    where.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{where.name}-", dir=where.parent))
    try:
        made.chmod(0o755)
        entries = [_write_kernel(made, variant, kernel) for variant, kernel in kernels.items()]
        (made / "program.txt").write_text(print_program(program), encoding="utf-8")
        (made / "spec.attn").write_text(text, encoding="utf-8")
        manifest = {
            "kind": KIND,
            "format": FORMAT,
            "attnc": _version(),
            "name": program.name,
            "target": "cpu" if target.kind == "cpu" else str(target),
            "machine": (target.arch or platform.machine()) if target.kind == "cpu" else "",
            "backend": backend,
            "bucket_version": bucket.VERSION,
            "kernels": entries,
            "parts": {
                _digest(part): [_write_kernel(made / "parts" / _digest(part), *one) for one in held.items()]
                for part, held in parts
            },
            "files": cache.digests(made),
        }
        (made / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if where.exists():
            shutil.rmtree(where)
        made.rename(where)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _digest(program: Program) -> str:
    """What a part goes by: its printed text."""
    return cache.digest_of(print_program(program))


def _write_kernel(made: Path, variant: Variant, kernel: Kernel) -> dict[str, Any]:
    kernels, sources = made / "kernels" / variant.name, made / "sources" / variant.name
    kernels.mkdir(parents=True)
    sources.mkdir(parents=True)
    saved = dict(kernel.save(kernels))
    for name, text in kernel.texts.items():
        (sources / name).write_text(text, encoding="utf-8")
    return {
        "name": variant.name,
        "widths": list(variant.widths),
        "workload": asdict(variant.workload),
        "buckets": [list(one) for one in variant.buckets],
        "kernel": saved,
    }


def is_bundle(where: Path) -> bool:
    """Whether a folder says that it is a bundle, of whatever format and in whatever state."""
    try:
        return bool(json.loads((where / MANIFEST).read_text(encoding="utf-8"))["kind"] == KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


class Bundle:
    """A bundle on disk, as :class:`attnc.runtime.KernelSource`. Every file is verified when it is opened.

    Raises:
        BundleError: the folder is no bundle, is damaged, or is of a newer format.
    """

    def __init__(self, where: Path) -> None:
        from attnc.ir.reader import Unreadable, read_program

        self._where = where
        manifest = _read_manifest(where)
        try:
            if damaged := cache.changed_files(where, manifest["files"]):
                raise BundleError(f"the bundle {where} is damaged: {damaged[0]} is missing or was changed")
            self.program: Program = read_program((where / "program.txt").read_text(encoding="utf-8"))
            self.target = str(manifest["target"])
            self._machine = str(manifest["machine"])
            self._backend = str(manifest["backend"])
            self.tag = f"{where.resolve()} {cache.key_of(manifest)}"
            found = {_variant(entry): entry for entry in manifest["kernels"]}
            self._entries = {variant: entry for variant, entry in found.items() if not variant.buckets}
            self._parts = {
                digest: {_variant(entry): entry for entry in entries}
                for digest, entries in manifest.get("parts", {}).items()
            }
            self._folder = where
            self.tuned = {
                (variant.widths, variant.workload, one): entry
                for variant, entry in found.items()
                for one in variant.buckets
                if manifest.get("bucket_version") == bucket.VERSION
            }
            self._loaded: dict[str, Kernel] = {}
            lacking = (entry["kernel"].get("missing") for entry in manifest["kernels"])
            self.missing: tuple[str, ...] = tuple(dict.fromkeys(filter(None, lacking)))
            """What kernels lack to be run, each reason once."""
        except (KeyError, TypeError, ValueError, AttributeError, Unreadable, OSError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"the bundle {where} is damaged: {MANIFEST}: {error}") from None

    def backend_on(self, device: str) -> Backend:
        """What runs on a type of device."""
        return backend_for(target_of_device(device), self._backend, compiles=False)

    def of_part(self, program: Program) -> Bundle:
        """The kernels of an attention that the program is made of; none, if it was compiled without."""
        digest = _digest(program)
        part = copy.copy(self)
        part.program = program
        part.tag = f"{self.tag} {digest}"
        part._entries = self._parts.get(digest, {})
        part.tuned, part._loaded = {}, {}
        part._folder = self._where / "parts" / digest
        return part

    def kernel(self, widths: Widths, workload: Workload, target: Target, sizes: Sizes) -> Kernel:
        """Load the kernel for a call: the one tuned for its bucket of sizes, or that for all sizes.

        Raises:
            BundleError: the bundle is for another target, or has no such kernel.
        """
        if str(target) != self.target:
            raise BundleError(f"the bundle {self._where} is for target `{self.target}`, the tensors are on `{target}`")
        if self._machine and self._machine != platform.machine():
            raise BundleError(
                f"the bundle {self._where} is for {self._machine} processors, this one is {platform.machine()}"
            )
        variant = Variant(widths, workload)
        if variant not in self._entries:
            held = ", ".join(sorted(known.name for known in self._entries))
            raise BundleError(
                f"the bundle {self._where} has no kernel {variant.name} with inputs {list(workload.inputs)}; it has "
                f"{held}: compile it with --head-dim, --dtype or --lse as needed"
            )
        entry = self.tuned.get((widths, workload, bucket.bucket_of(sizes)), self._entries[variant])
        name = str(entry["name"])
        try:
            if name not in self._loaded:
                backend = backend_for(target, self._backend, compiles=False)
                self._loaded[name] = backend.load(self._folder / "kernels" / name, entry["kernel"])
            return self._loaded[name]
        except (KeyError, TypeError, ValueError, OSError, ImportError) as error:
            raise BundleError(f"the bundle {self._where} cannot be run here: {name}: {error}") from error

    def refusal(self, widths: Widths, workload: Workload, target: Target) -> str | None:
        """Whether the bundle lacks a kernel."""
        if str(target) != self.target or Variant(widths, workload) not in self._entries:
            return f"the bundle {self._where} has no such kernel"
        return None

    def router(self, program: Program, widths: Widths, workload: Workload, device: str) -> tuple[Ranking, Router] | str:
        """Why torch chooses."""
        return f"the bundle {self._where} holds no kernels that choose"

    def selector(self, ranking: KeyRanking, workload: Workload, target: Target) -> Selector | str:
        """Why torch chooses."""
        return f"the bundle {self._where} holds no kernels that choose"

    def training(self, widths: Widths, names: Container[str], workload: Workload, target: Target) -> str:
        """Why the reference computes gradients."""
        return f"The bundle {self._where} holds no kernels for gradients: load the spec itself to train"

    def lse_problem(self, widths: Widths) -> str | None:
        """Why no kernel of these widths gives the log-sum-exp."""
        if any(variant.widths == widths and variant.workload.lse for variant in self._entries):
            return None
        return (
            f"the bundle {self._where} has no kernel that returns the log-sum-exp for D={widths[0]}, E={widths[1]}: "
            f"compile it with --lse"
        )

    def input_dtypes(self, dtype: str, inputs: tuple[str, ...]) -> tuple[str, ...]:
        """The types that the bundle's kernels take where they hold every value of the given ones."""
        for variant in self._entries:
            taken = variant.workload.inputs
            if variant.workload.dtype == dtype and all(
                wide in WIDER.get(given, (given,)) for given, wide in zip(inputs, taken, strict=True)
            ):
                return taken
        return inputs


def _read_manifest(where: Path) -> dict[str, Any]:
    path = where / MANIFEST
    if not path.is_file():
        raise BundleError(f"{where} is no bundle: it has no {MANIFEST}")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"the bundle {where} is damaged: {MANIFEST}: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise BundleError(f"{where} is no bundle: its {MANIFEST} is of something else")
    version = manifest.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise BundleError(
            f"the bundle {where} has format {version}, written by attnc {manifest.get('attnc')}; this is attnc "
            f"{_version()}, which reads formats up to {FORMAT}"
        )
    return manifest


def _variant(entry: Mapping[str, Any]) -> Variant:
    d, e = entry["widths"]
    workload = entry["workload"]
    buckets = tuple(Bucket(*map(int, one)) for one in entry.get("buckets", ()))
    given = Workload(workload["dtype"], tuple(workload["inputs"]), bool(workload["lse"]))
    return Variant((int(d), int(e)), given, buckets)


def _version() -> str:
    import attnc

    return attnc.__version__


def default_inputs(inputs: Sequence[Input], dtype: str) -> tuple[str, ...]:
    """Element types of inputs that hold those of most calls: reals in f32 (f64 with f64), ints in 64 bits.

    What routes chose comes in 32 bits.
    """
    types = {"real": "f64" if dtype == "f64" else "f32", "int": "i64", "bool": "bool"}
    return tuple("i32" if is_choice(source) else types[source.kind] for source in inputs)
