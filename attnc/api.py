"""The functions a user calls: ``load``, ``loads`` and ``compile``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attnc.autotune.request import chooser
from attnc.backends.protocol import Kernel, Target, Workload
from attnc.errors import ArgumentError, did_you_mean
from attnc.grammar.diagnostic import SpecError
from attnc.grammar.source import Source
from attnc.ir.program import Program
from attnc.jit import JustInTime, recall_spec
from attnc.op import Op
from attnc.routing.lower import is_plain
from attnc.runtime import Widths
from attnc.spec import Constants, Spec
from attnc.targets import backend_for, parse_target

if TYPE_CHECKING:
    from attnc.bundle import Variant

TUNING = ("cached", "compatible", "off", "on")
DTYPES = ("bf16", "f16", "f32", "f64")
DEFAULT_DTYPES: Mapping[str, tuple[str, ...]] = {
    "cpu": ("f32", "bf16"),
    "cuda": ("bf16", "f16"),
    "hip": ("bf16", "f16"),
}
DEFAULT_WIDTHS: tuple[Widths, ...] = ((64, 64), (128, 128))
OTHER_WIDTHS: tuple[Widths, ...] = ((32, 32), (80, 80), (96, 96), (256, 256), (192, 128), (576, 512))
"""Tried in order where a spec suits none of :data:`DEFAULT_WIDTHS`."""

PathLike = str | os.PathLike[str]


def load(
    path: PathLike,
    name: str | None = None,
    *,
    backend: str | None = None,
    tune: str = "cached",
    search: Sequence[PathLike] = (),
    constants: Constants | None = None,
    **more_constants: int | float | bool,
) -> Op:
    """The operator of a spec file, or of a bundle that ``attnc compile`` wrote.

    Args:
        path: a ``.attn`` file, or the folder of a bundle.
        name: which attention of the file, if it has several. ``"f.attn:name"`` as ``path`` says the same.
        backend: ``"triton"`` or ``"tvm"`` instead of the usual one of a device.
        tune: ``"cached"`` applies what ``attnc tune`` found for a call's hardware and bucket of sizes; ``"off"`` does
            not; ``"compatible"`` also applies, with a warning, what was found for the nearest other sizes, specs or
            hardware; ``"on"`` tunes, in the call, what was not tuned yet.
        search: folders besides the file's own in which imports are looked for.
        constants: values for the ``const`` declarations of the spec.
        more_constants: the same as keywords.

    Raises:
        SpecError: the spec is wrong; holds all its errors.
        BundleError: the folder is no bundle, damaged, or of a newer format.
        OSError: there is no such file.
    """
    given = {**(constants or {}), **more_constants}
    where = Path(path)
    if where.is_dir():
        if given or name:
            raise ArgumentError("constants", f"{where} is a bundle: its constants and its attention are settled")
        from attnc.bundle import Bundle

        bundle = Bundle(where)
        return Op(bundle.program, bundle)
    where, name = split_name(where, name)
    source = Source(str(where), where.read_text(encoding="utf-8"))
    return _op(Spec(source, name, given, (where.parent, *map(Path, search))), backend, tune)


def loads(
    text: str,
    name: str | None = None,
    *,
    backend: str | None = None,
    tune: str = "cached",
    search: Sequence[PathLike] = (),
    constants: Constants | None = None,
    **more_constants: int | float | bool,
) -> Op:
    """:func:`load` for the text of a spec."""
    if not isinstance(text, str):
        raise ArgumentError("text", f"a spec is a str, found {type(text).__name__}")
    spec = Spec(Source("<string>", text), name, {**(constants or {}), **more_constants}, tuple(map(Path, search)))
    return _op(spec, backend, tune)


def _op(spec: Spec, backend: str | None, tune: str) -> Op:
    if tune not in TUNING:
        raise ArgumentError("tune", f"tune is one of {', '.join(TUNING)}{did_you_mean(tune, TUNING)}, found `{tune}`")
    checked = recall_spec(spec)
    tag = "" if tune == "cached" else f"tune={tune}"
    return Op(checked.program, JustInTime(checked, backend, chooser(tune), tag))


def split_name(path: Path, name: str | None) -> tuple[Path, str | None]:
    """``f.attn:name`` as file and name, unless a file is called just that."""
    stem, colon, last = str(path).rpartition(":")
    if name is None and colon and last.isidentifier() and not path.exists():
        return Path(stem), last
    return path, name


def compile(
    path: PathLike,
    target: str,
    output: PathLike,
    name: str | None = None,
    *,
    backend: str | None = None,
    search: Sequence[PathLike] = (),
    constants: Constants | None = None,
    head_dims: Sequence[int | Widths] = (),
    dtypes: Sequence[str] = (),
    lse: bool = False,
    shapes: Sequence[Mapping[str, int]] = (),
    hardware: str | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Op:
    """Compile a spec ahead of time into a bundle, and return its operator; needs no device of the target.

    The kernels for all sizes are untuned. For each of ``shapes`` whose bucket was tuned, there is another one.

    Args:
        path: a ``.attn`` file, or ``"f.attn:name"``.
        target: ``"cpu"``, ``"cuda"``, ``"cuda:sm_80"``, ``"cuda:sm_90"``, ``"cuda:sm_100"``, ``"hip:gfx942"``.
        output: the folder to write; a bundle that stands there is replaced.
        name: which attention of the file, if it has several.
        backend: ``"triton"`` or ``"tvm"`` instead of the usual one of the target.
        search: folders besides the file's own in which imports are looked for.
        constants: values for the ``const`` declarations of the spec.
        head_dims: widths of q and k, or pairs ``(D, E)``; 64 and 128 by default, or the first known one that suits.
        dtypes: out of ``bf16 f16 f32 f64``; bf16 and f16 for GPUs, f32 and bf16 for CPUs by default.
        lse: also build kernels that return the log-sum-exp.
        shapes: sizes of calls, as ``attnc tune`` takes them: ``{"B": 1, "H": 8, "N": 4096, "D": 64}``.
        hardware: whose tuning results to take, by the name that ``attnc store ls`` shows; this machine's by default.
        progress: called with the name of each kernel before it is built.

    Raises:
        SpecError: the spec is wrong, or asks for what the target cannot do.
        TargetError: no such target or backend, or it is not installed.
        BundleError: ``output`` is a folder that holds something else.
    """
    from attnc.bundle import write_bundle

    where, name = split_name(Path(path), name)
    source = Source(str(where), where.read_text(encoding="utf-8"))
    machine = parse_target(target)
    spec = Spec(source, name, constants or {}, (where.parent, *map(Path, search)))
    checked = recall_spec(spec)
    just = JustInTime(checked, backend)
    program = just.program
    given = [(d, d) if isinstance(d, int) else d for d in head_dims]

    def compiled(source: JustInTime, widths: Sequence[Widths], lse: bool, label: str = "") -> dict[Variant, Kernel]:
        kernels: dict[Variant, Kernel] = {}
        for variant in variants(source.program, machine, widths, dtypes, lse):
            if variant.workload.lse and (problem := source.lse_problem(variant.widths)):
                raise ArgumentError("lse", problem)
            progress(f"{label}{variant.name}")
            kernels[variant] = source.kernel(variant.widths, variant.workload, machine, {})
        return kernels

    kernels: dict[Variant, Kernel] = {}
    parts: list[tuple[Program, dict[Variant, Kernel]]] = []
    if is_plain(program):
        kernels = compiled(just, given or default_widths(just), lse)
    elif shapes:
        raise ArgumentError("shapes", "what was tuned is found for attentions without routes, branches and windows")
    else:
        sources = [one.source for one in Op(program, just).composite.attentions(machine)]
        for one in sources:
            assert isinstance(one, JustInTime)
            widths = given or default_widths(one)
            reads_lse = bool(program.branches) and all(one.lse_problem(pair) is None for pair in widths)
            parts.append((one.program, compiled(one, widths, lse or reads_lse, f"{one.program.name} ")))
    if shapes:
        from attnc.ahead import tuned_kernels

        kernels |= tuned_kernels(checked, backend, machine, list(kernels), shapes, hardware, progress)
    elif hardware:
        raise ArgumentError("hardware", "it says whose results to take for `shapes`, and there are none")
    write_bundle(Path(output), program, source.text, machine, backend_for(machine, backend).name, kernels, parts)
    return load(output)


def variants(
    program: Program, target: Target, widths: Sequence[Widths], dtypes: Sequence[str], lse: bool
) -> list[Variant]:
    """The kernels that a bundle is to hold.

    Raises:
        ArgumentError: an unknown element type, or a width that is not positive.
    """
    from attnc.bundle import Variant, default_inputs

    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ArgumentError(
                "dtype", f"unknown dtype `{dtype}`{did_you_mean(dtype, DTYPES)}; known are bf16 f16 f32 f64"
            )
    for d, e in widths:
        if d < 1 or e < 1:
            raise ArgumentError("head_dims", f"a head width must be positive, found {d}:{e}")
    return [
        Variant(pair, Workload(dtype, default_inputs(program.inputs, dtype), with_lse))
        for pair in dict.fromkeys(widths)
        for dtype in dict.fromkeys(dtypes or DEFAULT_DTYPES[target.kind])
        for with_lse in ((False, True) if lse else (False,))
    ]


def default_widths(source: JustInTime) -> list[Widths]:
    """The default head widths that suit a spec.

    Raises:
        SpecError: none does.
    """
    for candidates in (DEFAULT_WIDTHS, *((pair,) for pair in OTHER_WIDTHS)):
        suited = [pair for pair in candidates if _suits(source, pair)]
        if suited:
            return suited
    source.plan(DEFAULT_WIDTHS[0])
    raise AssertionError("the widths that do not suit were refused")


def _suits(source: JustInTime, widths: Widths) -> bool:
    try:
        source.plan(widths)
    except SpecError:
        return False
    return True
