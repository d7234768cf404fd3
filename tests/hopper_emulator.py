"""Runs kernels written in Gluon on CPU tensors, as far as the templates use it: no GPU, no layouts, no speed.

Partitions are threads, and everything that is in flight on a GPU is as late here as it may be: copies by TMA arrive
when their barrier completes, and spoil what they overwrite when they start; products read shared memory when they are
waited for, and their result cannot be used before; additions by TMA read what they add when they are waited for. What
is read too early, overwritten too early or waited for in vain is thus a wrong number, an exception or a deadlock.
"""

from __future__ import annotations

import builtins
import importlib.util
import math
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnc.backends.triton.assembly import Lowered
from attnc.backends.triton.interpreter import Interpreter
from attnc.backends.triton.module import write_source
from attnc.backends.triton.recipe import Box, Launch, Value

_WORDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Deadlock(RuntimeError):
    """All partitions wait."""


class World:
    """The threads of one program: which run, and what the others wait for."""

    def __init__(self, threads: int) -> None:
        self.changed = threading.Condition()
        self.running = threads
        self.waiting: list[Callable[[], bool]] = []
        self.failure: BaseException | None = None
        self.meeting = [0, 0]

    def wait(self, until: Callable[[], bool], what: str) -> None:
        with self.changed:
            if until():
                return
            self.waiting.append(until)
            self.stop(what)
            while not until() and self.failure is None:
                self.changed.wait()
            self.waiting.remove(until)
            self.running += 1
            if self.failure is not None:
                raise Deadlock(what) from self.failure

    def stop(self, what: str) -> None:
        """A thread runs no more, or waits."""
        self.running -= 1
        if self.running == 0 and self.waiting and not any(until() for until in self.waiting):
            self.failure = self.failure or Deadlock(f"all partitions wait, the last for {what}")
        self.wake()

    def wake(self) -> None:
        self.changed.notify_all()

    def meet(self, threads: int) -> None:
        """Waits for so many partitions."""
        with self.changed:
            self.meeting[0] += 1
            turn = self.meeting[1]
            if self.meeting[0] == threads:
                self.meeting = [0, turn + 1]
                self.wake()
        self.wait(lambda: self.meeting[1] != turn, "the other warpgroup")


LOCAL = threading.local()
"""Of a partition: its ``world``, products ``flying``, additions ``adding``."""


@dataclass
class Barrier:
    """An mbarrier: arrivals, bytes that are awaited, copies that will bring them."""

    count: int = 0
    arrived: int = 0
    awaited: int = 0
    phase: int = 0
    copies: list[Callable[[], None]] = field(default_factory=list)
    brought: int = 0

    def settle(self) -> None:
        assert self.arrived <= self.count, "more arrivals than a barrier counts"
        assert self.brought <= self.awaited or self.arrived < self.count, "more bytes than a barrier awaits"
        if self.arrived == self.count and self.brought == self.awaited:
            for copy in self.copies:
                copy()
            self.arrived, self.awaited, self.brought, self.copies = 0, 0, 0, []
            self.phase ^= 1
            LOCAL.world.wake()


@dataclass
class Barriers:
    """Barriers in shared memory."""

    each: list[Barrier]

    def index(self, at: Any) -> Barriers:
        return Barriers([self.each[int(at)]])

    @property
    def one(self) -> Barrier:
        (barrier,) = self.each
        return barrier


class mbarrier:
    """The operations on barriers."""

    MBarrierLayout = staticmethod(lambda: "barrier")

    @staticmethod
    def init(barriers: Barriers, count: int) -> None:
        barriers.one.count = int(count)

    @staticmethod
    def wait(barriers: Barriers, phase: Any) -> None:
        barrier = barriers.one
        LOCAL.world.wait(lambda: barrier.phase != int(phase), "a barrier")

    @staticmethod
    def arrive(barriers: Barriers, count: int = 1) -> None:
        with LOCAL.world.changed:
            barriers.one.arrived += count
            barriers.one.settle()

    @staticmethod
    def expect(barriers: Barriers, size: int) -> None:
        with LOCAL.world.changed:
            barriers.one.arrived += 1
            barriers.one.awaited += int(size)
            barriers.one.settle()


@dataclass
class Shared:
    """Shared memory; what was not written is no number."""

    data: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def shape(self) -> list[int]:
        return list(self.data.shape)

    def index(self, at: Any) -> Shared:
        return Shared(self.data[int(at)])

    def load(self, layout: Any = None) -> Tensor:
        return self.data.clone()

    def store(self, value: Any) -> None:
        self.data.copy_(torch.as_tensor(value).to(self.data.dtype).expand(self.data.shape))

    def reshape(self, shape: Sequence[int]) -> Shared:
        return Shared(self.data.view([int(n) for n in shape]))

    def permute(self, order: Sequence[int]) -> Shared:
        return Shared(self.data.permute(*order))

    def slice(self, start: int, length: int, dim: int = 0) -> Shared:
        return Shared(self.data.narrow(int(dim), int(start), int(length)))


class Descriptor:
    """A tensor and the box that one copy moves of it."""

    def __init__(self, box: Box, tensor: Tensor) -> None:
        self.dtype, self.layout = _WORDS[box.type], "box"
        assert tensor.dtype == self.dtype, f"{box.name} is of {tensor.dtype}, its descriptor of {self.dtype}"
        valid = box.valid or tensor.shape[-1]
        self.tensor, self.block = tensor[..., box.lo : box.lo + valid], box.block
        nbytes = math.prod(box.block) * self.dtype.itemsize
        self.block_type = types.SimpleNamespace(shape=list(box.block), nbytes=nbytes)

    def part(self, at: Sequence[Any]) -> tuple[Tensor, tuple[slice, ...]]:
        """What of the tensor a box at some place covers, and where that is in the box."""
        first = [int(x) for x in at]
        ends = [min(lo + n, size) for lo, n, size in zip(first, self.block, self.tensor.shape, strict=True)]
        there = tuple(slice(lo, max(lo, end)) for lo, end in zip(first, ends, strict=True))
        return self.tensor[there], tuple(slice(0, max(0, end - lo)) for lo, end in zip(first, ends, strict=True))


def copy_in(descriptor: Descriptor, at: Sequence[Any], barriers: Barriers, into: Shared) -> None:
    assert into.shape == list(descriptor.block), f"a box of {descriptor.block} into {into.shape}"
    room, (part, inside) = into.data, descriptor.part(at)
    room.fill_(math.nan)

    def arrive() -> None:
        room.zero_()
        room[inside] = part

    with LOCAL.world.changed:
        barrier = barriers.one
        barrier.copies.append(arrive)
        barrier.brought += descriptor.block_type.nbytes
        barrier.settle()


def tma_reduce_add(descriptor: Descriptor, at: Sequence[Any], source: Shared) -> None:
    part, inside = descriptor.part(at)

    def add() -> None:
        with LOCAL.world.changed:
            part.add_(source.data[inside])

    LOCAL.adding.append(add)


def copies_out_done(pending: int) -> None:
    while len(LOCAL.adding) > pending:
        LOCAL.adding.pop(0)()


class Flying:
    """A product whose result is not there yet."""

    def __init__(self, a: Any, b: Shared, total: Any, use_total: bool) -> None:
        self.a, self.b, self.total, self.use_total = a, b, total, use_total
        self.result: Tensor | None = None
        LOCAL.flying.append(self)

    def land(self) -> None:
        total = self.total.result if isinstance(self.total, Flying) else self.total
        a = self.a.data if isinstance(self.a, Shared) else self.a
        product = a.float() @ self.b.data.float()
        self.result = product + total if self.use_total else product


def warpgroup_mma(a: Any, b: Shared, total: Any, use_acc: Any = True, is_async: bool = False) -> Flying:
    assert is_async
    return Flying(a, b, total, bool(use_acc))


def warpgroup_mma_wait(pending: int, deps: Sequence[Any]) -> Any:
    while len(LOCAL.flying) > pending:
        LOCAL.flying.pop(0).land()
    arrived = tuple(x.result if isinstance(x, Flying) and x.result is not None else x for x in deps)
    return arrived[0] if len(arrived) == 1 else arrived


@dataclass
class Pointer:
    """Addresses in the memory of a tensor."""

    memory: Tensor
    at: Any = 0

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.memory.dtype)

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.memory, self.at + more)

    def places(self) -> Tensor:
        return torch.as_tensor(self.at).long()


def pointer(tensor: Tensor) -> Pointer:
    whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())  # type: ignore[call-overload]
    return Pointer(whole, torch.tensor(tensor.storage_offset()))


def load(address: Pointer, mask: Any = None, other: Any = 0) -> Tensor:
    at = address.places()
    if mask is None:
        return address.memory[at].clone()
    mask, at = torch.broadcast_tensors(torch.as_tensor(mask), at)
    return torch.where(mask, address.memory[torch.where(mask, at, 0)], other)


def store(address: Pointer, value: Any, mask: Any = None) -> None:
    at, value = torch.broadcast_tensors(address.places(), torch.as_tensor(value))
    kept = torch.ones_like(at, dtype=torch.bool) if mask is None else torch.as_tensor(mask).expand(at.shape)
    address.memory[at[kept]] = value[kept].to(address.memory.dtype)


def assembly(text: str, constraints: str, args: Sequence[Any], **_: Any) -> Any:
    if text.startswith("bar.sync"):
        LOCAL.world.meet(int(text.split(",")[1].partition(";")[0]) // 128)
        return 0
    known = {"mov.b32": lambda x: x, "tanh.approx": torch.tanh, "rcp.approx": torch.reciprocal}
    return next(call for word, call in known.items() if text.startswith(word))(args[0])


def _number(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.int32 if isinstance(x, int) else torch.float32)


def _language() -> dict[str, Any]:
    """What the templates use of ``tl`` and ``gl``."""
    unary = {name: getattr(torch, name) for name in ("exp2", "log2", "exp", "log", "floor", "rsqrt", "abs")}
    return {
        **unary,
        "constexpr": lambda x: x,
        "static_range": lambda *bounds: range(*map(int, bounds)),
        "float32": torch.float32, "float64": torch.float64, "int32": torch.int32, "int64": torch.int64,
        "arange": lambda lo, hi, layout=None: torch.arange(int(lo), int(hi), dtype=torch.int32),
        "zeros": lambda shape, dtype, layout=None: torch.zeros([int(n) for n in shape], dtype=dtype),
        "full": lambda shape, value, dtype, layout=None: torch.zeros([int(n) for n in shape], dtype=dtype) + value,
        "expand_dims": lambda x, axis: x.unsqueeze(axis),
        "minimum": lambda a, b: torch.minimum(_number(a), _number(b)),
        "maximum": lambda a, b: torch.maximum(_number(a), _number(b)),
        "where": torch.where,
        "sum": lambda x, axis: x.sum(axis),
        "max": lambda x, axis: x.amax(axis),
        "cdiv": lambda a, b: (a + b - 1) // b,
        "load": load, "store": store,
        "convert_layout": lambda x, layout, assert_trivial=False: x,
        "to_tensor": _number,
        "inline_asm_elementwise": assembly,
        **{name: lambda *_, **__: "layout" for name in (
            "SliceLayout", "BlockedLayout", "SwizzledSharedLayout", "NVMMASharedLayout", "NVMMADistributedLayout",
            "DotOperandLayout")},
    }  # fmt: skip


class Program:
    """One program of a launch: modules of templates with a language of its own."""

    def __init__(self, number: int, programs: int) -> None:
        self.number, self.programs = number, programs
        self.modules: dict[str, types.ModuleType] = {}
        self.failures: list[BaseException] = []
        language = types.SimpleNamespace(
            **_language(), program_id=lambda _: torch.tensor(number, dtype=torch.int32),
            num_programs=lambda _: torch.tensor(programs, dtype=torch.int32), atomic_add=self.add,
            allocate_shared_memory=self.allocate, warp_specialize=self.specialize,
        )  # fmt: skip

        def same(x: Any) -> Any:
            return x

        gluon = types.SimpleNamespace(
            gl=language, jit=same, aggregate=same, constexpr_function=same, tuple_value=tuple, nested=same,
            copy_in=copy_in, copies_out_done=copies_out_done, fence_async_shared=lambda: None, mbarrier=mbarrier,
            tma_reduce_add=tma_reduce_add, warpgroup_mma=warpgroup_mma, warpgroup_mma_wait=warpgroup_mma_wait,
        )  # fmt: skip
        self.given = {
            "triton": types.SimpleNamespace(jit=same, language=language),
            "triton.language": language,
            "attnc.templates.hopper.gluon": gluon,
        }

    def add(self, address: Pointer, value: int, sem: str = "") -> Tensor:
        with LOCAL.world.changed:
            before = load(address)
            store(address, before + value)
        return before

    def allocate(self, dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Any:
        if layout == "barrier":
            return Barriers([Barrier() for _ in range(math.prod(int(n) for n in shape))])
        room = torch.empty([int(n) for n in shape], dtype=dtype)
        return Shared(room.fill_(math.nan if dtype.is_floating_point else -(2**30)))

    def specialize(self, partitions: Sequence[Any], warps: Sequence[int], registers: Sequence[int]) -> None:
        world = World(len(partitions))

        def run(function: Callable[..., None], arguments: Sequence[Any]) -> None:
            LOCAL.world, LOCAL.flying, LOCAL.adding = world, [], []
            try:
                function(*arguments)
                assert not LOCAL.flying, "a product is in flight at the end"
                assert not LOCAL.adding, "an addition is in flight at the end"
            except BaseException as failure:
                self.failures.append(failure)
                with world.changed:
                    world.failure = world.failure or failure
            with world.changed:
                world.stop("what another that has ended would do")

        threads = [threading.Thread(target=run, args=partition) for partition in partitions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failures:
            raise next((one for one in self.failures if not isinstance(one, Deadlock)), self.failures[0])

    def load_module(self, name: str) -> Any:
        if name in self.given:
            return self.given[name]
        if name not in self.modules:
            spec = importlib.util.find_spec(name)
            assert spec is not None, name
            assert spec.origin is not None, name
            with open(spec.origin, encoding="utf-8") as file:
                self.modules[name] = self.execute(name, file.read())
            if name == "attnc.templates.hopper.lib":  # instructions there
                for known in ("sigmoid", "sigmoid2", "log", "power_fixed", "sin", "cos", "with_sign"):
                    setattr(self.modules[name], known, getattr(self.load_module("attnc.templates.triton.lib"), known))
        return self.modules[name]

    def execute(self, name: str, text: str) -> types.ModuleType:
        """A module whose imports of Triton and of templates are those of this program."""

        def found(wanted: str, *rest: Any) -> Any:
            names = rest[2] if len(rest) > 2 else ()
            if not wanted.startswith(("triton", "attnc.templates")):
                return builtins.__import__(wanted, *rest)
            if not names:
                return self.given[wanted.partition(".")[0]]
            if wanted in ("attnc.templates.hopper", "attnc.templates.triton"):
                return types.SimpleNamespace(**{name: self.load_module(f"{wanted}.{name}") for name in names})
            return self.load_module(wanted)

        module = types.ModuleType(name)
        module.__dict__["__builtins__"] = {**builtins.__dict__, "__import__": found}
        exec(compile(text, name, "exec"), module.__dict__)
        return module


class Emulator:
    """Executes the launches of a recipe: those of the Hopper families here, the others in Triton's interpreter."""

    def __init__(self, name: str, lowered: Lowered, processors: int = 3) -> None:
        self.launches = lowered.recipe.launches
        self.others = Interpreter(name, replace(lowered, library="triton"))
        self.source = write_source(name, lowered.functions, lowered.library)
        self.processors = processors

    def __call__(self, at: int, programs: int, bind: Callable[[Value | Box], Any]) -> None:
        launch = self.launches[at]
        if launch.family != "hopper_backward":
            self.others(at, programs, bind)
            return
        programs = min(programs, self.processors) if launch.resident else programs
        for number in range(programs):
            self.run(launch, Program(number, programs), bind)

    def run(self, launch: Launch, program: Program, bind: Callable[[Value | Box], Any]) -> None:
        def bound(argument: Any) -> Any:
            if isinstance(argument, tuple):
                return tuple(map(bound, argument))
            value = bind(argument)
            if isinstance(argument, Box):
                return Descriptor(argument, value)
            return pointer(value) if isinstance(value, Tensor) else _number(value)

        values = {name: bound(tree) for name, tree in launch.arguments.items()}
        module = program.execute("slots", self.source)
        slots = {slot: getattr(module, name) for slot, name in launch.slots.items()}
        walk = program.load_module("attnc.templates.hopper.backward").walk
        walk(**values, **launch.constants, **slots)
