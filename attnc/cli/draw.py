"""What ``attnc draw`` does."""

from __future__ import annotations

from pathlib import Path

from attnc.cli.compile import spec_of
from attnc.cli.console import Exit, fail, out
from attnc.jit import JustInTime, recall_spec
from attnc.op import Op
from attnc.spec import Constants


def draw(argument: str, constants: Constants, sizes: tuple[int, int] | None, tensors: Path | None, head: str) -> None:
    """Print the mask at some sizes, or what the routes choose on the tensors of a file."""
    checked = recall_spec(spec_of(argument, constants))
    op = Op(checked.program, JustInTime(checked))
    if tensors is None:
        if sizes is None:
            fail("give `--size M N` to draw the mask, or `--tensors FILE` to draw the routes", Exit.USAGE)
        out.print(op.draw(*sizes), markup=False)
        return
    import torch

    given = torch.load(tensors, weights_only=True)
    missing = [name for name in "qkv" if name not in given]
    if missing:
        fail(f"{tensors} lacks {', '.join(missing)}: save a dict of q, k, v and inputs with torch.save", Exit.USAGE)
    b, _, h = head.rpartition(":")
    out.print(op.draw_routes(**given, b=int(b or 0), h=int(h)), markup=False)
