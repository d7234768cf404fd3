"""The kernels of the families, by name; importing them imports Triton."""

from __future__ import annotations

from typing import Any


def template(family: str) -> Any:
    """The kernel of a family."""
    if family == "hopper":
        from attnc.templates.hopper.forward import forward

        return forward
    if family == "hopper_backward":
        from attnc.templates.hopper.backward import walk

        return walk
    from attnc.templates.triton.choose import rank, select
    from attnc.templates.triton.gather import gather, spread
    from attnc.templates.triton.scatter import scatter, settle
    from attnc.templates.triton.split import combine, split
    from attnc.templates.triton.stream import stream
    from attnc.templates.triton.tiles import tiles
    from attnc.templates.triton.token import token

    kernels = (stream, split, combine, gather, spread, rank, select, tiles, token, scatter, settle)
    return {kernel.__name__: kernel for kernel in kernels}[family]
