"""The two matrix products of attention on tensor cores, by ``mma.sync``.

A warp multiplies 16 rows. Elements of 16 bits take instructions of 16 bits; ``float32`` is split into parts of 11 bits,
of which three of the four products are added. The scores of a warp stay in its registers and become the first factor of
the second product there: what PTX calls a row's columns 2t and 2t + 1 of one are the k of the other.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from attnc.templates.tvm.cuda.block import GROUP, Block, Local, call
from attnc.templates.tvm.cuda.copies import Tile
from attnc.templates.tvm.processor import device_function
from attnc.templates.tvm.products import index
from attnc.templates.tvm.values import constant


def multiply(block: Block, scores: Local, queries: Tile, keys: Tile) -> None:
    """``scores[n, r] = sum_d queries[r, d] * keys[n, d]``: four numbers of a thread for each 8 keys."""
    with T.unroll(scores.count) as at:
        scores[index(at)] = constant(0.0, "float32")
    if queries.shape.element == "f32":
        _multiply_f32(block, scores, queries, keys)
        return
    first, lane = (block.warp * GROUP + (block.lane & 15)).keep(), block.lane
    right = ((lane >> 4) * 8).keep()
    key, half = ((lane & 7) + (lane >> 4) * 8).keep(), (((lane >> 3) & 1) * 8).keep()
    a, b = Local(4, "uint32"), Local(4, "uint32")
    with T.unroll(queries.padded // 16) as step:
        d = (index(step) * 16).keep()
        call("attnc_load", a.address(), queries.address(first, right + d))
        with T.unroll(keys.rows // 16) as pair:
            n = index(pair)
            call("attnc_load", b.address(), keys.address(key + n * 16, half + d))
            for part in (0, 1):
                name = f"attnc_multiply_{queries.shape.element}"
                call(name, scores.address(n * 8 + part * 4), a.address(), b.address(part * 2))


def _multiply_f32(block: Block, scores: Local, queries: Tile, keys: Tile) -> None:
    row = (block.warp * GROUP + block.group).keep()
    a, b = Local(4, "float32"), Local(2, "float32")
    with T.unroll(queries.padded // 8) as step:
        d = (index(step) * 8 + block.place).keep()
        for k in range(4):
            a[k] = queries.load(row + k % 2 * 8, d + k // 2 * 4)
        with T.unroll(keys.rows // 8) as at:
            n = index(at)
            for k in range(2):
                b[k] = keys.load(n * 8 + block.group, d + k * 4)
            call("attnc_multiply_f32", scores.address(n * 4), a.address(), b.address())


def accumulate(block: Block, sums: Local, weights: Local, values: Tile, *, wide: bool) -> None:
    """``sums[r, e] += sum_n weights[n, r] * values[n, e]``.

    ``wide`` weights may be beyond what 16 bits hold.
    """
    if wide or values.shape.element == "f32":
        _accumulate_f32(block, sums, weights, values)
        return
    element, lane = values.shape.element, block.lane
    key, right = (lane & 15).keep(), ((lane >> 4) * 8).keep()
    a, b = Local(4, "uint32"), Local(4, "uint32")
    with T.unroll(values.rows // 16) as step:
        n = (index(step) * 16).keep()
        for k in range(4):
            place = index(step) * 8 + k * 2
            a[k] = device_function(f"attnc_pack_{element}", weights[place], weights[place + 1], type="uint32")
        with T.unroll(values.padded // 16) as pair:
            e = index(pair)
            call("attnc_load_transposed", b.address(), values.address(key + n, right + e * 16))
            for part in (0, 1):
                call(f"attnc_multiply_{element}", sums.address(e * 8 + part * 4), a.address(), b.address(part * 2))


def _accumulate_f32(block: Block, sums: Local, weights: Local, values: Tile) -> None:
    """Key 2t is the instruction's k = t, and key 2t + 1 its k = t + 4, for both factors."""
    name = "attnc_multiply_f32" if values.shape.element == "f32" else "attnc_multiply_wide"
    a, b = Local(4, "float32"), Local(2, "float32")
    with T.unroll(values.rows // 8) as step:
        n = (index(step) * 8 + block.place * 2).keep()
        for k, place in enumerate((0, 2, 1, 3)):
            a[k] = weights[index(step) * 4 + place]
        with T.unroll(values.padded // 8) as at:
            e = index(at)
            for k in range(2):
                b[k] = values.load(n + k, e * 8 + block.group)
            call(name, sums.address(e * 4), a.address(), b.address())
