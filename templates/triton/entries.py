"""Queries sorted by the blocks of keys in their lists: counted, summed up, and put in their places.

``numbers [B, H, M, MOST]`` are the lists; what is no block, or stands in a list before, is left out. An *entry* is
``row * MOST + place``. For each head of each batch row (a *line*), ``order`` holds its entries by block, and by row
within a block: one order, whatever runs first. The entries of a block are cut into tiles of ``TILE``.
"""

import triton
import triton.language as tl


@triton.jit
def count(
    numbers,
    clean,
    counts,
    H,
    M,
    BLOCKS,
    CHUNKS,
    MOST: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: a program for each chunk of ``CHUNK`` rows, head and batch row.

    ``counts [B, H, CHUNKS, BLOCKS]``, which were 0, become how often a chunk takes a block; ``clean [B, H, M, MOST]``
    the lists with -1 for what is left out.
    """
    program = tl.program_id(0)
    chunk = program % CHUNKS
    line = program // CHUNKS
    pointer, stride_b, stride_h, stride_row = numbers
    base = pointer + (line // H).to(tl.int64) * stride_b + (line % H).to(tl.int64) * stride_h
    place = tl.arange(0, PADDED)
    for first in tl.range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, M), ROWS):
        row = first + tl.arange(0, ROWS)
        there = (row < M)[:, None] & (place < MOST)[None, :]
        found = tl.load(base + row.to(tl.int64)[:, None] * stride_row + place[None, :], mask=there, other=-1)
        number = found.to(tl.int32)
        number = tl.where(there & (found >= 0) & (found < BLOCKS), number, -1)
        earlier = (place[:, None] > place[None, :])[None, :, :]
        again = tl.max(((number[:, :, None] == number[:, None, :]) & earlier).to(tl.int32), 2)
        number = tl.where(again > 0, -1, number)
        at = (line.to(tl.int64) * M + row[:, None]) * MOST + place[None, :]
        tl.store(clean + at, number, mask=there)
        cell = (line.to(tl.int64) * CHUNKS + chunk) * BLOCKS + number
        tl.atomic_add(counts + cell, 1, mask=number >= 0, sem="relaxed")


@triton.jit
def add_chunks(counts, before, totals, BLOCKS, CHUNKS, WIDTH: tl.constexpr, DEPTH: tl.constexpr):
    """Grid: a program for ``WIDTH`` blocks of each line.

    ``before [B, H, CHUNKS, BLOCKS]``: entries of a block in earlier chunks; ``totals [B, H, BLOCKS]``.
    """
    tiles = tl.cdiv(BLOCKS, WIDTH)
    program = tl.program_id(0)
    line = program // tiles
    block = program % tiles * WIDTH + tl.arange(0, WIDTH)
    base = line.to(tl.int64) * CHUNKS * BLOCKS
    sums = tl.zeros([WIDTH], tl.int32)
    for first in tl.range(0, CHUNKS, DEPTH):
        chunk = first + tl.arange(0, DEPTH)
        there = (chunk < CHUNKS)[:, None] & (block < BLOCKS)[None, :]
        at = base + chunk.to(tl.int64)[:, None] * BLOCKS + block[None, :]
        found = tl.load(counts + at, mask=there, other=0)
        tl.store(before + at, tl.cumsum(found, 0) - found + sums[None, :], mask=there)
        sums += tl.sum(found, 0)
    tl.store(totals + line.to(tl.int64) * BLOCKS + block, sums, mask=block < BLOCKS)


@triton.jit
def add_blocks(totals, starts, tiles, BLOCKS, TILE: tl.constexpr, WIDTH: tl.constexpr):
    """Grid: a program for each line. ``starts``, ``tiles`` ``[B, H, BLOCKS + 1]``: entries, tiles before a block."""
    line = tl.program_id(0).to(tl.int64)
    entries = line.to(tl.int32) * 0
    made = line.to(tl.int32) * 0
    for first in tl.range(0, BLOCKS, WIDTH):
        block = first + tl.arange(0, WIDTH)
        there = block < BLOCKS
        total = tl.load(totals + line * BLOCKS + block, mask=there, other=0)
        cut = (total + TILE - 1) // TILE
        at = line * (BLOCKS + 1) + block
        tl.store(starts + at, entries + tl.cumsum(total, 0) - total, mask=there)
        tl.store(tiles + at, made + tl.cumsum(cut, 0) - cut, mask=there)
        entries += tl.sum(total, 0)
        made += tl.sum(cut, 0)
    tl.store(starts + line * (BLOCKS + 1) + BLOCKS, entries)
    tl.store(tiles + line * (BLOCKS + 1) + BLOCKS, made)


@triton.jit
def place(
    clean,
    before,
    starts,
    tiles,
    order,
    tasks,
    M,
    BLOCKS,
    CHUNKS,
    TASKS,
    MOST: tl.constexpr,
    ENTRIES: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid: as of ``count``. ``before`` is used up.

    ``order [B, H, M * MOST]``; ``tasks [B, H, TASKS, 3]``, which were 0: of each tile its block plus 1, its first entry
    in ``order`` and the one after its last.
    """
    program = tl.program_id(0)
    chunk = program % CHUNKS
    line = (program // CHUNKS).to(tl.int64)
    at = tl.arange(0, ENTRIES)
    before += (line * CHUNKS + chunk) * BLOCKS
    starts += line * (BLOCKS + 1)
    tiles += line * (BLOCKS + 1)
    clean += line * M * MOST
    order += line * M * MOST
    tasks += line * TASKS * 3
    end = tl.minimum(chunk * CHUNK + CHUNK, M) * MOST
    earlier = at[:, None] > at[None, :]
    for first in tl.range(chunk * CHUNK * MOST, end, ENTRIES):
        entry = first + at
        block = tl.load(clean + entry, mask=entry < end, other=-1)
        given = block >= 0
        same = block[:, None] == block[None, :]
        rank = tl.sum((same & earlier).to(tl.int32), 1)
        count = tl.sum(same.to(tl.int32), 1)
        used = tl.load(before + block, mask=given, other=0)
        begin = tl.load(starts + block, mask=given, other=0)
        within = used + rank
        tl.store(order + begin + within, entry, mask=given)
        leads = given & (within % TILE == 0)
        stop = tl.load(starts + block + 1, mask=leads, other=0)
        task = tl.load(tiles + block, mask=leads, other=0) + within // TILE
        tl.store(tasks + task * 3, block + 1, mask=leads)
        tl.store(tasks + task * 3 + 1, begin + within, mask=leads)
        tl.store(tasks + task * 3 + 2, tl.minimum(begin + within + TILE, stop), mask=leads)
        tl.debug_barrier()
        tl.store(before + block, within + 1, mask=given & (rank + 1 == count))
        tl.debug_barrier()
