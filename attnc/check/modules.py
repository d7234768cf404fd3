"""Files and their imports: the functions each file sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from attnc.check.block import ALWAYS_THERE
from attnc.check.defaults import std_scope
from attnc.check.functions import Scope, declare
from attnc.check.intrinsics import INTRINSICS
from attnc.check.report import Report
from attnc.grammar import Source, SpecError
from attnc.grammar import tree as t
from attnc.grammar.parse import parse

MAX_IMPORTS = 100


class Modules:
    """Loads imported files, each once, from the folder of the spec and the search path."""

    def __init__(self, main: Source, search: Sequence[Path], report: Report) -> None:
        path = Path(main.name)
        self._is_file = path.is_file()
        home = [path.resolve().parent] if self._is_file else []
        self._roots = [*home, *(root.resolve() for root in search)]
        self._report = report
        self._loaded: dict[Path, Scope] = {}
        self._loading: list[Path] = [path.resolve()] if self._is_file else []
        self._main = path.resolve() if self._is_file else None

    def scope(self, file: t.File, path: Path | None = None) -> Scope:
        """The functions of a file: its own, then those it imports, then the prelude."""
        imported = Scope(std_scope())
        origin: dict[str, t.Import] = {}
        for statement in file.imports:
            found = self._load(statement, path or self._main)
            for name, function in found.own.items() if found else ():
                if name in imported.own and imported.own[name] is not function:
                    notes = (f"first imported at {origin[name].span}",)
                    self._report.add("E103", f"`{name}` is imported twice", statement.span, notes=notes)
                imported.own[name] = function
                origin[name] = statement
        scope = Scope(imported)
        declare(scope, file.functions, self._report, frozenset(INTRINSICS) | ALWAYS_THERE, None)
        return scope

    def imported(self) -> Iterable[Scope]:
        """The functions of each imported file."""
        return self._loaded.values()

    def _load(self, statement: t.Import, importer: Path | None) -> Scope | None:
        path = self._resolve(statement, importer)
        if path is None:
            return None
        if path in self._loading:
            cycle = " -> ".join(entry.name for entry in (*self._loading[self._loading.index(path) :], path))
            self._report.add("E502", f"files import each other: {cycle}", statement.span)
            return None
        if path not in self._loaded:
            if len(self._loaded) >= MAX_IMPORTS:
                self._report.add("E901", f"more than {MAX_IMPORTS} files are imported", statement.span)
                return None
            self._loading.append(path)
            self._loaded[path] = self._parse(statement, path)
            self._loading.pop()
        return self._loaded[path]

    def _parse(self, statement: t.Import, path: Path) -> Scope:
        try:
            text = path.read_bytes().decode("utf-8-sig")
            return self.scope(parse(Source(str(path), text)), path)
        except UnicodeDecodeError as wrong:
            message = f"{path.name} is not UTF-8 (byte {wrong.start})"
            self._report.add("E503", message, statement.span)
        except OSError as wrong:
            self._report.add("E503", f"{path.name} cannot be read: {wrong.strerror}", statement.span)
        except SpecError as wrong:
            self._report.extend(wrong.diagnostics)
        return Scope()

    def _resolve(self, statement: t.Import, importer: Path | None) -> Path | None:
        """The file of an import: beside the importing file, else in the search path, and never outside of these."""
        written = statement.path
        if not written or "\0" in written or Path(written).is_absolute():
            hint = "a path is relative to the importing file or the search path"
            self._report.add("E501", f'"{written}" is not a relative path', statement.span, hint=hint)
            return None
        beside = [importer.parent] if importer else []
        candidates = [(folder / written).resolve() for folder in (*beside, *self._roots)]
        inside = [path for path in candidates if any(path.is_relative_to(root) for root in self._roots)]
        if candidates and not inside:
            hint = "imports stay within the folder of the spec and the search path"
            self._report.add("E501", f'"{written}" leads outside the search path', statement.span, hint=hint)
            return None
        for path in inside:
            if path.is_file():
                return path
        folders = ", ".join(dict.fromkeys(path.parent.name or "/" for path in inside))
        hint = f"looked in {folders}" if inside else "a spec without a file imports from the search path alone"
        self._report.add("E501", f'there is no file "{written}"', statement.span, hint=hint)
        return None
