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
    shape, lane = queries.shape, block.lane
    first = (block.warp * (GROUP * shape.groups) + (lane & 15)).keep()
    right = ((lane >> 4) * 8).keep()
    key, half = ((lane & 7) + (lane >> 4) * 8).keep(), (((lane >> 3) & 1) * 8).keep()
    a, b = Local(4 * shape.groups, "uint32"), Local(4, "uint32")
    with T.unroll(queries.padded // 16) as step:
        d = (index(step) * 16).keep()
        for group in range(shape.groups):
            call("attnc_load", a.address(4 * group), queries.address(first + group * GROUP, right + d))
        with T.unroll(keys.rows // 16) as pair:
            n = index(pair)
            call("attnc_load", b.address(), keys.address(key + n * 16, half + d))
            for group in range(shape.groups):
                for part in (0, 1):
                    place = shape.place(n * 2 + part, 2 * group, 0, shape.keys)
                    factors = a.address(4 * group), b.address(2 * part)
                    call(f"attnc_multiply_{shape.element}", scores.address(place), *factors)


def _multiply_f32(block: Block, scores: Local, queries: Tile, keys: Tile) -> None:
    shape = queries.shape
    row = (block.warp * (GROUP * shape.groups) + block.group).keep()
    a, b = Local(4 * shape.groups, "float32"), Local(2, "float32")
    with T.unroll(queries.padded // 8) as step:
        d = (index(step) * 8 + block.place).keep()
        for k in range(4 * shape.groups):
            a[k] = queries.load(row + (k // 4 * GROUP + k % 2 * 8), d + k % 4 // 2 * 4)
        with T.unroll(keys.rows // 8) as at:
            n = index(at)
            for k in range(2):
                b[k] = keys.load(n * 8 + block.group, d + k * 4)
            for group in range(shape.groups):
                place = shape.place(n, 2 * group, 0, shape.keys)
                call("attnc_multiply_f32", scores.address(place), a.address(4 * group), b.address())


def accumulate(block: Block, sums: Local, weights: Local, values: Tile, *, wide: bool) -> None:
    """``sums[r, e] += sum_n weights[n, r] * values[n, e]``.

    ``wide`` weights may be beyond what 16 bits hold.
    """
    if wide or values.shape.element == "f32":
        _accumulate_f32(block, sums, weights, values)
        return
    shape, lane = values.shape, block.lane
    key, right = (lane & 15).keep(), ((lane >> 4) * 8).keep()
    a, b = Local(4 * shape.groups, "uint32"), Local(4, "uint32")
    with T.unroll(values.rows // 16) as step:
        n = (index(step) * 16).keep()
        for k in range(4 * shape.groups):
            place = shape.place(index(step) * 2 + k % 4 // 2, k // 4 * 2 + k % 2, 0, shape.keys).keep()
            a[k] = device_function(f"attnc_pack_{shape.element}", weights[place], weights[place + 1], type="uint32")
        with T.unroll(values.padded // 16) as pair:
            e = index(pair)
            call("attnc_load_transposed", b.address(), values.address(key + n, right + e * 16))
            for group in range(shape.groups):
                for part in (0, 1):
                    place = shape.place(e * 2 + part, 2 * group, 0, values.padded)
                    factors = a.address(4 * group), b.address(2 * part)
                    call(f"attnc_multiply_{shape.element}", sums.address(place), *factors)


def _accumulate_f32(block: Block, sums: Local, weights: Local, values: Tile) -> None:
    """Key 2t is the instruction's k = t, and key 2t + 1 its k = t + 4, for both factors."""
    name = "attnc_multiply_f32" if values.shape.element == "f32" else "attnc_multiply_wide"
    shape = values.shape
    a, b = Local(4 * shape.groups, "float32"), Local(2, "float32")
    with T.unroll(values.rows // 8) as step:
        n = (index(step) * 8 + block.place * 2).keep()
        for k in range(4 * shape.groups):
            a[k] = weights[shape.place(index(step), k // 4 * 2 + k % 2, k % 4 // 2, shape.keys)]
        with T.unroll(values.padded // 8) as at:
            e = index(at)
            for k in range(2):
                b[k] = values.load(n + k, e * 8 + block.group)
            for group in range(shape.groups):
                place = shape.place(e, 2 * group, 0, values.padded)
                call(name, sums.address(place), a.address(4 * group), b.address())
