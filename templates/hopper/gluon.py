"""All that these kernels take from Gluon, in one place: what a later Triton renames is mended here."""

from typing import Any

from triton._C.libtriton import ir
from triton.compiler import ASTSource
from triton.experimental import gluon as _gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language._core import builtin
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.core import _aggregate as aggregate
from triton.language.core import tuple as tuple_value

copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
copy_out = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
"""Copies by TMA; the names before ``or`` are those of Triton 3.9."""
copies_out_done = tma.store_wait

jit = _gluon.jit
constexpr_function = _gluon.constexpr_function

__all__ = [
    "aggregate",
    "constexpr_function",
    "copies_out_done",
    "copy_in",
    "copy_out",
    "descriptor_type",
    "fence_async_shared",
    "gl",
    "jit",
    "mbarrier",
    "nested",
    "source_of",
    "tma",
    "tma_reduce_add",
    "tuple_value",
    "warpgroup_mma",
    "warpgroup_mma_wait",
]


@builtin
def tma_reduce_add(descriptor, coord, source, _semantic=None):
    """Adds a box of shared memory to a tensor, where it lies within. Triton 3.6 has this in its builder alone."""
    coord = _semantic._convert_to_ir_values(coord, require_i64=False)
    kind = ir.DESCRIPTOR_REDUCE_KIND.ADD
    _semantic.builder.create_async_tma_reduce(kind, descriptor.handle, coord, source.handle)


@constexpr_function
def nested(table):
    """A tuple of numbers, or of such tuples, as a compile-time field of an aggregate."""
    if isinstance(table, tuple | tuple_value):
        return tuple_value([nested(entry) for entry in table])
    return gl.constexpr(table)


def source_of(kernel: Any, signature: dict[str, Any], constants: dict[Any, Any], hints: dict[Any, Any]) -> ASTSource:
    """What ``triton.compile`` takes, of a kernel in Triton or in Gluon."""
    make = GluonASTSource if isinstance(kernel, _gluon._runtime.GluonJITFunction) else ASTSource
    return make(kernel, signature, constants, hints)


def descriptor_type(element: str, block: tuple[int, ...], swizzle: int, bits: int) -> str:
    """A TMA descriptor made by the host, in the notation of signatures."""
    shape = ", ".join(map(str, block))
    layout = f"NVMMASharedLayout(swizzle_byte_width={swizzle}, element_bitwidth={bits}, rank={len(block)})"
    return f"tensordesc<{element}[{shape}],{layout}>"
