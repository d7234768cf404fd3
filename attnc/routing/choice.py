"""What a route chose: a bit for each chooser and block, or for each chooser a list of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attnc.routing.dense import Call, Choosers

WORD = 32
"""Blocks to a word."""


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """``bits [B or 1, H or 1, C, ceil(blocks / 32)]`` (int32): bit ``J % 32`` of word ``J // 32`` is block ``J``."""

    bits: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Lists:
    """``numbers [B or 1, H or 1, C, most]`` (int32) and ``counts [B or 1, H or 1, C]`` (int32).

    The first ``counts`` numbers of a chooser are the blocks it chose, each once, in any order; -1 follows them.
    ``most`` is known without looking at data.
    """

    numbers: Tensor
    counts: Tensor

    @property
    def most(self) -> int:
        """The longest list there could be."""
        return self.numbers.shape[-1]


Held: TypeAlias = Words | Lists


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a route chose among ``blocks`` blocks of ``block`` keys each, in either form.

    Heads of a group that choose together may have one choice in both forms: ``G`` instead of ``H``, where these differ
    (:func:`by_head`). For ``keep``, ``block`` is 0: the one bit of a row says whether it is kept. Conversions copy
    nothing to the host.
    """

    held: Held
    block: int
    blocks: int
    choosers: Choosers

    @property
    def words(self) -> Tensor:
        """The choice as bits."""
        match self.held:
            case Words(bits=bits):
                return bits
            case Lists():
                return words_of(self.held, self.blocks)

    def lists(self, most: int) -> Lists:
        """The choice as lists of at most ``most`` blocks, which must be enough: the lowest ones, if it is not."""
        match self.held:
            case Lists():
                return self.held
            case Words(bits=bits):
                return lists_of(bits, self.blocks, most)

    def of_chooser(self, rows: Tensor, shift: int) -> Tensor:
        """Who chooses for each query row."""
        if self.choosers.block is None:
            return rows
        if self.choosers.block == 0:
            return torch.zeros_like(rows)
        return (rows + shift).div(self.choosers.block, rounding_mode="floor") - self.choosers.first

    def pairs(self, lo: int, hi: int, call: Call) -> Tensor:
        """The pairs left of the rows ``lo .. hi - 1``: ``[B or 1, H or 1, hi - lo, N or 1]``."""
        rows = torch.arange(lo, hi, device=call.device)
        at = self.of_chooser(rows, call.shift)
        match self.held:
            case Words(bits=bits):
                chosen = unpack(bits[:, :, at])
            case Lists(numbers=numbers, counts=counts):
                chosen = unpack(words_of(Lists(numbers[:, :, at], counts[:, :, at]), self.blocks))
        chosen = by_head(chosen, call)
        if self.block == 0:
            return chosen[..., :1]
        return chosen[..., torch.arange(call.sizes["N"], device=call.device) // self.block]


def by_head(x: Tensor, call: Call) -> Tensor:
    """What is there for each key head, for each query head; other heads as they are."""
    return x if x.shape[1] in (1, call.sizes["H"]) else x[:, call.groups]


def unpack(words: Tensor) -> Tensor:
    """The bits of words, ``[.., W]`` to ``[.., 32 W]``."""
    bits = torch.arange(WORD, device=words.device, dtype=torch.int32)
    return ((words[..., None] >> bits) & 1).bool().flatten(-2)


def pack(chosen: Tensor) -> Tensor:
    """The inverse of :func:`unpack`, filled up with 0."""
    short = -chosen.shape[-1] % WORD
    bits = torch.nn.functional.pad(chosen, (0, short)).unflatten(-1, (-1, WORD)).to(torch.int32)
    places = torch.arange(WORD, device=chosen.device, dtype=torch.int32)
    words: Tensor = (bits << places).sum(-1, dtype=torch.int32)
    return words


def words_of(lists: Lists, blocks: int) -> Tensor:
    """The bits of lists: a sum, since each block stands in a list once."""
    numbers = lists.numbers
    words = numbers.new_zeros(*numbers.shape[:-1], -(-blocks // WORD))
    if not words.shape[-1] or not lists.most:
        return words
    given = torch.arange(lists.most, device=numbers.device) < lists.counts[..., None]
    at = torch.where(given, numbers, torch.zeros_like(numbers))
    bits = torch.ones_like(at) << (at % WORD)
    return words.scatter_add_(-1, (at // WORD).long(), torch.where(given, bits, torch.zeros_like(bits)))


def lists_of(words: Tensor, blocks: int, most: int) -> Lists:
    """The blocks of words in ascending order, at most ``most`` of them."""
    return lists_from(unpack(words)[..., :blocks], most)


def lists_from(chosen: Tensor, most: int) -> Lists:
    """The same of truth values ``[.., blocks]``."""
    place = chosen.cumsum(-1, dtype=torch.int32) - 1
    counts = chosen.sum(-1, dtype=torch.int32).clamp(max=most)
    place = torch.where(chosen & (place < most), place, torch.full_like(place, most))
    numbers = torch.arange(chosen.shape[-1], device=chosen.device, dtype=torch.int32).expand(chosen.shape)
    found = torch.full((*chosen.shape[:-1], most + 1), -1, dtype=torch.int32, device=chosen.device)
    return Lists(found.scatter_(-1, place.long(), numbers)[..., :most].contiguous(), counts)
