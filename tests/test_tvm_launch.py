"""Running compiled code on the threads of torch."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attnc.backends.tvm import launch as launch_module
from attnc.backends.tvm.launch import Function, callback, launch
from attnc.templates.tvm.head import HEAD, PHASE, ROOM, SCRATCH


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Seen:
    """A function that notes on which thread it ran, and the words it was given; it waits until all threads came."""

    def __init__(self, threads: int) -> None:
        self.all = threading.Barrier(threads, timeout=60)
        self.threads: list[int] = []
        self.words: list[list[int]] = []
        self.lock = threading.Lock()

    def __call__(self, call: int) -> None:
        with self.lock:
            self.threads.append(threading.get_native_id())
            self.words.append(list((ctypes.c_int64 * (HEAD + 1)).from_address(call)))
        self.all.wait()


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_as_many_threads_as_torch_has(threads: int, openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if openmp and not launch_module._openmp():
        pytest.skip("torch has no OpenMP here")
    if not openmp:
        monkeypatch.setattr(launch_module, "_openmp", lambda: None)
    seen = Seen(threads)
    torch.set_num_threads(threads)
    launch(callback(seen), [0] * HEAD + [7], phases=2, room=128)
    for phase in (0, 1):
        ran = [thread for thread, words in zip(seen.threads, seen.words, strict=True) if words[PHASE] == phase]
        assert len(ran) == len(set(ran)) == threads
        assert threading.get_native_id() in ran
    for words in seen.words:
        assert words[SCRATCH] % 64 == 0
        assert (words[ROOM], words[HEAD]) == (128, 7)


def test_the_threads_are_those_of_torch() -> None:
    """Kernels and torch's operators share one pool: two of them would compete for the cores."""
    if not launch_module._openmp():
        pytest.skip("torch has no OpenMP here")
    torch.set_num_threads(2)
    torch.randn(2000, 2000).sin()
    before = threads_of_process()
    seen = Seen(2)
    launch(callback(seen), [0] * HEAD + [0], phases=1, room=64)
    assert set(seen.threads) <= before


def test_calls_from_several_threads_have_scratch_memory_of_their_own() -> None:
    torch.set_num_threads(1)
    places: dict[str, int] = {}

    def work(name: str) -> None:
        def function(call: int) -> None:
            places[name] = list((ctypes.c_int64 * HEAD).from_address(call))[SCRATCH]
            time.sleep(0.05)

        made: Function = callback(function)
        launch(made, [0] * HEAD, phases=1, room=1024)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert abs(places["a"] - places["b"]) >= 1024


def threads_of_process() -> set[int]:
    return {int(path.name) for path in Path("/proc/self/task").iterdir()}
