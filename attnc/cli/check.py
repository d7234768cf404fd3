"""What ``attnc check`` does."""

from __future__ import annotations

import json
from dataclasses import replace

from attnc.cli.compile import spec_of
from attnc.cli.console import out
from attnc.compiler import check_spec
from attnc.grammar.parse import parse
from attnc.spec import Constants


def check(argument: str, constants: Constants, as_json: bool) -> None:
    """Check a spec, every attention of it; the checker shows all errors of a file, whichever attention is named.

    Raises:
        SpecError: there are errors.
    """
    spec = spec_of(argument, constants)
    names = [attention.name.text for attention in parse(spec.source).attentions]
    check_spec(replace(spec, name=spec.name or next(iter(names), None)))
    if as_json:
        print(json.dumps([]))
    else:
        out.print(f"{spec.source.name}: {', '.join(names)}: no errors", markup=False)
