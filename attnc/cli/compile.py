"""What ``attnc check``, ``explain`` and ``compile`` do."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnc import api
from attnc.bundle import Bundle
from attnc.cli.console import Exit, err, fail, out, progress
from attnc.compiler import Stop, compile_spec
from attnc.errors import ArgumentError
from attnc.grammar.source import Source
from attnc.ir.printer import print_program
from attnc.jit import JustInTime, recall_spec
from attnc.op import Op
from attnc.runtime import Widths
from attnc.spec import Constants, Spec
from attnc.targets import parse_target


class Emit(enum.StrEnum):
    """A stage of the compiler that can be looked at."""

    IR = "ir"
    PLAN = "plan"
    SOURCE = "source"
    ASM = "asm"


ASSEMBLY = {".s", ".asm", ".ptx", ".amdgcn", ".ll", ".llir"}
"""Endings of the texts of a kernel that are the machine's rather than the template's."""


@dataclass(frozen=True, slots=True)
class Request:
    """The options of ``attnc compile``."""

    spec: str
    constants: Constants
    target: str
    backend: str | None
    widths: list[Widths]
    dtypes: list[str]
    lse: bool
    shapes: Sequence[str] = ()
    hardware: str | None = None

    def just_in_time(self) -> JustInTime:
        return JustInTime(recall_spec(spec_of(self.spec, self.constants)), self.backend)


def spec_of(argument: str, constants: Constants) -> Spec:
    """The spec that the argument of a command names."""
    path, name = api.split_name(Path(argument), None)
    return Spec(Source(str(path), path.read_text(encoding="utf-8")), name, constants, (path.parent,))


def numbers_of(text: str) -> dict[str, int]:
    """``B=1,H=8`` as a dict.

    Raises:
        ArgumentError: it is none.
    """
    given: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, number = part.partition("=")
        if not number.isdigit():
            raise ArgumentError("shapes", f"`{part}`: write NAME=NUMBER")
        given[name] = int(number)
    return given


def widths_of(text: str) -> Widths:
    """``64`` or ``192:128`` as head widths."""
    d, _, e = text.partition(":")
    if not d.isdigit() or not (e or d).isdigit():
        fail(f"`--head-dim {text}`: write D or D:E, two positive numbers", Exit.USAGE)
    return int(d), int(e or d)


def explain(argument: str, constants: Constants, widths: Widths, grad: bool) -> None:
    """Print what was derived, for the forward or for gradients."""
    checked = recall_spec(spec_of(argument, constants))
    out.print(Op(checked.program, JustInTime(checked)).explain(*widths, grad=grad), markup=False)


def emit(request: Request, stage: Emit) -> None:
    """Print one stage for the first of the head widths and element types."""
    just = request.just_in_time()
    target = parse_target(request.target)
    widths = request.widths or api.default_widths(just)
    first = api.variants(just.program, target, widths, request.dtypes, lse=request.lse)[-1 if request.lse else 0]
    stop = {Emit.IR: Stop.SPECIALIZE, Emit.PLAN: Stop.PLAN}.get(stage, Stop.BUILD)
    with progress(f"compiling {first.name}"):
        made = compile_spec(just.program, first.widths, first.workload, target, request.backend, stop)
    if made.kernel is not None:
        for name, text in made.kernel.texts.items():
            if (Path(name).suffix in ASSEMBLY) == (stage is Emit.ASM):
                print(f"# {name}\n{text.rstrip()}\n")
    elif made.plan is not None:
        print(made.plan)
    else:
        print(print_program(made.program), end="")


def compile_to(request: Request, folder: Path) -> None:
    """Write a bundle and say what it holds."""
    started = time.perf_counter()
    with err.status("reading the spec") if err.is_terminal else progress("") as status:
        made = api.compile(
            request.spec,
            request.target,
            folder,
            backend=request.backend,
            constants=request.constants,
            head_dims=request.widths,
            dtypes=request.dtypes,
            lse=request.lse,
            shapes=[numbers_of(text) for text in request.shapes],
            hardware=request.hardware,
            progress=lambda name: status.update(f"compiling {name}") if status else None,
        )
    took = time.perf_counter() - started
    out.print(f"{made.name}: wrote {folder} in {took:.1f} s", markup=False)
    for missing in Bundle(folder).missing:
        err.print(f"{folder} holds no machine code: {missing}", markup=False)
    if request.shapes:
        found = len({bucket for *_, bucket in Bundle(folder).tuned})
        out.print(f"tuned for {found} buckets of sizes; `attnc store explain` says why not for others", markup=False)


def default_folder(request: Request) -> Path:
    """Where a bundle goes that was given no folder: beside the caller, by spec and target."""
    path, name = api.split_name(Path(request.spec), None)
    return Path("-".join(filter(None, (path.stem, name, str(parse_target(request.target)).replace(":", "-")))))
