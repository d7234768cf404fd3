"""Kernel code on its way to being called or saved, and the linker that makes libraries of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from attnc.backends.tvm.arguments import ENTRY
from attnc.backends.tvm.launch import Function, load_function

OBJECT, LIBRARY = "kernel.o", "kernel.so"


class Code(ABC):
    """Machine code of one kernel."""

    @abstractmethod
    def function(self) -> Function:
        """The compiled function.

        Raises:
            OSError: it cannot be linked or loaded.
        """

    @abstractmethod
    def write(self, folder: Path) -> str:
        """Write the code as a file, and return its name: a library, or an object where only its machine can link it.

        Raises:
            OSError: there is no linker, or it failed.
        """

    @abstractmethod
    def texts(self) -> Mapping[str, str]:
        """The TIR and the assembly, by file name."""


class Saved(Code):
    """Code in a folder that a kernel was saved to."""

    def __init__(self, folder: Path, name: str, texts: list[str]) -> None:
        self._folder, self._name, self._texts = folder, name, texts
        self._linked: Linked | None = None

    def function(self) -> Function:
        path = self._folder / self._name
        if path.suffix == ".o":
            self._linked = Linked(path.read_bytes())
            path = self._linked.library
        return load_function(path, ENTRY)

    def write(self, folder: Path) -> str:
        shutil.copyfile(self._folder / self._name, folder / self._name)
        return self._name

    def texts(self) -> Mapping[str, str]:
        return {name: (self._folder / name).read_text(encoding="utf-8") for name in self._texts}


class Linked:
    """A library made of an object file; it is removed with this.

    Raises:
        OSError: there is no linker, or it failed.
    """

    def __init__(self, object_file: bytes) -> None:
        folder = Path(tempfile.mkdtemp(prefix="attnc-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        (folder / OBJECT).write_bytes(object_file)
        link(folder / OBJECT, folder / LIBRARY)
        self.library = folder / LIBRARY


def link(object_file: Path, library: Path) -> None:
    """Make a shared library of an object file with the C compiler that is installed.

    Raises:
        OSError: there is none, or it failed.
    """
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError("saving a CPU kernel takes a linker: install a C compiler (cc, gcc or clang)")
    command = [compiler, "-shared", "-o", str(library), str(object_file), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{compiler} could not link a CPU kernel: {done.stderr.strip()}")
