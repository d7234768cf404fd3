"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli import check as checking
from attnc.cli import compile as compiling
from attnc.cli import doctor as doctoring
from attnc.cli.compile import Emit
from attnc.cli.console import constants_of, errors_reported, out

app = typer.Typer(
    name="attnc",
    help="An attention compiler: a spec in, a torch operator out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Exit codes: 0 done, 1 the spec has errors, 2 the command line is wrong, 3 the target cannot do it.",
)

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A file, or FILE:NAME for one attention of several.")]
Definitions = Annotated[
    list[str] | None, typer.Option("-D", metavar="NAME=VALUE", help="Override a constant of the spec.")
]
Json = Annotated[bool, typer.Option("--json", help="Errors and results as JSON on standard output.")]
TargetName = Annotated[str, typer.Option("--target", "-t", help="cpu, cuda[:sm_80|sm_90|sm_100] or hip:gfx942.")]


def _version(wanted: bool) -> None:
    if wanted:
        import attnc

        out.print(f"attnc {attnc.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
def check(spec: SpecArgument, define: Definitions = None, as_json: Json = False) -> None:
    """Check every attention of a spec (or the one named), and show all errors."""
    with errors_reported(as_json):
        checking.check(spec, constants_of(define or []), as_json)


@app.command()
def explain(
    spec: SpecArgument,
    define: Definitions = None,
    head_dim: Annotated[str, typer.Option("--head-dim", metavar="D[:E]", help="Width of q and k, and of v.")] = "64",
    grad: Annotated[bool, typer.Option("--grad", help="The derived backward instead.")] = False,
) -> None:
    """Say what the compiler derives: passes over the keys, running state, skipped tiles, what is not possible."""
    with errors_reported():
        compiling.explain(spec, constants_of(define or []), compiling.widths_of(head_dim), grad)


@app.command()
def compile(
    spec: SpecArgument,
    target: TargetName,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write a bundle here.")] = None,
    backend: Annotated[str | None, typer.Option("--backend", help="triton or tvm, instead of the usual one.")] = None,
    define: Definitions = None,
    head_dim: Annotated[
        list[str] | None,
        typer.Option("--head-dim", metavar="D[:E]", help="Width of q and k, and of v. May be repeated. [64 and 128]"),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", help="bf16, f16, f32 or f64. May be repeated. [bf16, f16; on the CPU bf16, f32]"),
    ] = None,
    lse: Annotated[bool, typer.Option("--lse", help="Also kernels that return the log-sum-exp.")] = False,
    emit: Annotated[Emit | None, typer.Option("--emit", help="Print one stage of the compiler instead.")] = None,
    as_json: Json = False,
) -> None:
    """Compile a spec into a folder that attnc.load runs without any compiler. Needs no GPU."""
    with errors_reported(as_json):
        request = compiling.Request(
            spec,
            constants_of(define or []),
            target,
            backend,
            [compiling.widths_of(text) for text in head_dim or []],
            dtype or [],
            lse,
        )
        if emit:
            compiling.emit(request, emit)
        if output or not emit:
            compiling.compile_to(request, output or compiling.default_folder(request))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which targets work here, and why others do not."""
    doctoring.doctor(as_json)
