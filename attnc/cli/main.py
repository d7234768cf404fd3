"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli import check as checking
from attnc.cli import compile as compiling
from attnc.cli import doctor as doctoring
from attnc.cli import draw as drawing
from attnc.cli import store_commands
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

app.add_typer(store_commands.app)

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
def draw(
    spec: SpecArgument,
    define: Definitions = None,
    size: Annotated[tuple[int, int] | None, typer.Option("--size", metavar="M N", help="Draw the mask.")] = None,
    tensors: Annotated[
        Path | None, typer.Option("--tensors", help="A dict of q, k, v and inputs, by torch.save: draw the routes.")
    ] = None,
    head: Annotated[str, typer.Option("--head", metavar="[B:]H", help="The head to draw routes of.")] = "0",
) -> None:
    """Draw the tiles of a mask, or what routes choose on given tensors."""
    with errors_reported():
        drawing.draw(spec, constants_of(define or []), size, tensors, head)


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
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shapes", "-s", metavar="B=1,H=8,N=1024", help="Also a tuned kernel for calls of such sizes."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option("--hardware", help="Whose results to take, as `attnc store ls` calls it. [this one]")
    ] = None,
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
            shapes or [],
            hardware,
        )
        if emit:
            compiling.emit(request, emit)
        if output or not emit:
            compiling.compile_to(request, output or compiling.default_folder(request))


@app.command()
def tune(
    spec: SpecArgument,
    target: TargetName,
    shapes: Annotated[
        list[str] | None,
        typer.Option("--shapes", "-s", metavar="B=1,H=8,N=1024,D=64", help="Sizes of a call. May be repeated."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Trials (200) or seconds (60s) for each kernel.")] = "60s",
    dtype: Annotated[list[str] | None, typer.Option("--dtype", help="bf16, f16, f32 or f64. May be repeated.")] = None,
    grad: Annotated[bool, typer.Option("--grad", help="Also the kernels of training.")] = False,
    wrt: Annotated[str, typer.Option("--wrt", help="The arguments that training needs gradients of.")] = "q,k,v",
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Training under torch.use_deterministic_algorithms.")
    ] = False,
    lse: Annotated[bool, typer.Option("--lse", help="Kernels that return the log-sum-exp.")] = False,
    tensors: Annotated[
        Path | None, typer.Option("--tensors", help="Measure this call: a dict of q, k, v and inputs, by torch.save.")
    ] = None,
    define: Definitions = None,
    backend: Annotated[str | None, typer.Option("--backend", help="triton or tvm, instead of the usual one.")] = None,
    store: Annotated[Path | None, typer.Option("--store", help="A folder for results, not the user's own.")] = None,
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="A journal (path) or database (URL) through which processes share the work."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Spend the budget on top of what is stored.")] = False,
    missing: Annotated[bool, typer.Option("--missing", help="Only what was never tuned to the end.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Begin without the best of neighbouring results.")] = False,
    require_hit: Annotated[bool, typer.Option("--require-hit", help="Tune nothing; fail if anything is not.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a page (HTML) about the results.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes that compile. [one a core]")] = 0,
) -> None:
    """Find the fastest configs of a spec on this machine, and keep them for attnc.load."""
    from attnc.autotune.places import user_store
    from attnc.autotune.store import Store
    from attnc.cli import tune as tuning

    with errors_reported():
        gradients = [name.strip() for name in wrt.split(",")] if grad else []
        constants = constants_of(define or [])
        wanted = tuning.Wanted(
            spec, constants, target, backend, shapes or [], dtype or [], gradients, lse, deterministic, tensors
        )
        if require_hit:
            tuning.require(wanted)
        else:
            where = Store(store) if store else user_store()
            tuning.run(wanted, where, budget, storage, resume, missing, cold, jobs, plot)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what is installed, which targets work here, and why others do not."""
    doctoring.doctor(as_json)
