"""Kernel code on its way to being called or saved, and the linker that makes libraries of it."""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from attnc.backends.tvm.arguments import ENTRY
from attnc.backends.tvm.launch import Function, load_function


class Code(ABC):
    """Machine code of one kernel."""

    @abstractmethod
    def function(self) -> Function:
        """The compiled function."""

    @abstractmethod
    def library(self) -> Path:
        """A shared library with the code.

        Raises:
            OSError: there is no linker, or it failed.
        """

    @abstractmethod
    def texts(self) -> Mapping[str, str]:
        """The TIR and the assembly, by file name."""


class Saved(Code):
    """Code in a folder that a kernel was saved to."""

    def __init__(self, folder: Path, library: str, texts: list[str]) -> None:
        self._folder, self._library, self._texts = folder, library, texts

    def function(self) -> Function:
        return load_function(self.library(), ENTRY)

    def library(self) -> Path:
        return self._folder / self._library

    def texts(self) -> Mapping[str, str]:
        return {name: (self._folder / name).read_text(encoding="utf-8") for name in self._texts}


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
