"""The commands of ``attnc store`` and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnc.cli.console import constants_of, errors_reported

app = typer.Typer(name="store", help="Tuning results: look at them, and carry them about.", no_args_is_help=True)

At = Annotated[Path | None, typer.Option("--store", help="A folder of results, not the user's own.")]
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="The beginning of a key.")]
Url = Annotated[
    str, typer.Argument(metavar="REMOTE", help="Anything fsspec knows: a folder, s3://, gs://, ssh://, ftp://")
]
Dry = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Options = Annotated[list[str] | None, typer.Option("--option", "-o", help="NAME=VALUE for fsspec. May be repeated.")]


@app.command()
def ls(store: At = None) -> None:
    """List every key with what is best for it."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.ls(stores.store_at(store))


@app.command()
def show(key: KeyArgument, store: At = None) -> None:
    """Print everything that is known of a key, as JSON."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.show(stores.store_at(store), key)


@app.command()
def explain(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A file, or FILE:NAME.")],
    target: Annotated[str, typer.Option("--target", "-t")] = "cpu",
    shapes: Annotated[list[str] | None, typer.Option("--shapes", "-s", metavar="B=1,H=8,N=1024,D=64")] = None,
    dtype: Annotated[list[str] | None, typer.Option("--dtype")] = None,
    grad: Annotated[bool, typer.Option("--grad", help="Also the kernels of training.")] = False,
    wrt: Annotated[str, typer.Option("--wrt", help="The arguments that training needs gradients of.")] = "q,k,v",
    define: Annotated[list[str] | None, typer.Option("-D", metavar="NAME=VALUE")] = None,
    store: At = None,
) -> None:
    """Say where the config of a kernel comes from, or why there is none: the nearest key, and what differs."""
    from attnc.cli import store as stores
    from attnc.cli.tune import Wanted

    with errors_reported():
        names = wrt.split(",") if grad else []
        wanted = Wanted(spec, constants_of(define or []), target, None, shapes or [], dtype or [], names, False)
        stores.explain(wanted, stores.store_at(store))


@app.command()
def export(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A file .jsonl, or a folder for one a hardware.")],
    store: At = None,
) -> None:
    """Write all records into text files that can be committed; what stands there stays."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.export(stores.store_at(store), output)


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A bundle, a folder of bundles, or a store.")],
    store: At = None,
) -> None:
    """Add the records of a bundle; one that was tampered with is refused as a whole."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.merge([source], stores.store_at(store))


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="A B ...", help="Stores and bundles.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="C", help="The store to add them to.")],
) -> None:
    """Put stores together: a union, in whatever order."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.merge(sources, stores.store_at(output))


@app.command()
def push(remote: Url, store: At = None, dry_run: Dry = False, option: Options = None) -> None:
    """Send what a remote lacks."""
    from attnc.cli import store as stores

    with errors_reported():
        options = {name: str(value) for name, value in stores.settings_of(option or []).items()}
        stores.transfer(stores.store_at(store), remote, options, push=True, dry=dry_run)


@app.command()
def pull(remote: Url, store: At = None, dry_run: Dry = False, option: Options = None) -> None:
    """Fetch what a remote has and the store lacks."""
    from attnc.cli import store as stores

    with errors_reported():
        options = {name: str(value) for name, value in stores.settings_of(option or []).items()}
        stores.transfer(stores.store_at(store), remote, options, push=False, dry=dry_run)


@app.command()
def verify(
    rerun: Annotated[str, typer.Option("--rerun", metavar="SPEC", help="Also measure winners again, here.")] = "",
    target: Annotated[str, typer.Option("--target", "-t")] = "cpu",
    shapes: Annotated[list[str] | None, typer.Option("--shapes", "-s", metavar="B=1,H=8,N=1024,D=64")] = None,
    dtype: Annotated[list[str] | None, typer.Option("--dtype")] = None,
    store: At = None,
) -> None:
    """Read every record, and fail if one is not what was written."""
    from attnc.cli import store as stores
    from attnc.cli.tune import Wanted

    with errors_reported():
        stores.verify(stores.store_at(store))
        if rerun:
            wanted = Wanted(rerun, {}, target, None, shapes or [], dtype or [], (), False)
            stores.rerun(wanted, stores.store_at(store))


@app.command()
def pin(
    key: KeyArgument,
    config: Annotated[list[str] | None, typer.Argument(metavar="NAME=SETTING", help="None: the default.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="For whoever wonders.")] = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take pins of this key away.")] = False,
    store: At = None,
) -> None:
    """Decide for a config, whatever was measured."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.pin(stores.store_at(store), key, config or [], reason, remove)


@app.command()
def gc(
    stale: Annotated[bool, typer.Option("--stale", help="Also results of other compilers and kernels.")] = False,
    store: At = None,
) -> None:
    """Remove unfinished and damaged files."""
    from attnc.cli import store as stores

    with errors_reported():
        stores.gc(stores.store_at(store), stale)
