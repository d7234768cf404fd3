"""The `.attn` language: text, syntax tree, syntax errors, and the prelude written in it."""

from attnc.grammar.diagnostic import Diagnostic, SpecError, render, to_json
from attnc.grammar.source import Source, Span
from attnc.grammar.std import STD_NAME, std_source

__all__ = ["STD_NAME", "Diagnostic", "Source", "Span", "SpecError", "render", "std_source", "to_json"]
