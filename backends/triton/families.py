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
    from attnc.templates.triton.choose import rank_keys, select_keys
    from attnc.templates.triton.entries import add_blocks, add_chunks, count, place
    from attnc.templates.triton.gather import gather, spread
    from attnc.templates.triton.regrouped import merge, regrouped, regrouped_rows
    from attnc.templates.triton.scatter import scatter, settle
    from attnc.templates.triton.select import pool, select
    from attnc.templates.triton.split import combine, split
    from attnc.templates.triton.stream import stream
    from attnc.templates.triton.tiles import tiles
    from attnc.templates.triton.token import token

    kernels = [stream, split, combine, gather, spread, tiles, token, scatter, settle]
    kernels += [count, add_chunks, add_blocks, place, regrouped, regrouped_rows, merge]
    kernels += [pool, select, rank_keys, select_keys]
    return {kernel.__name__: kernel for kernel in kernels}[family]
