"""Machine code of NVIDIA GPUs, read back: does it use uniform registers that nothing wrote?"""

from __future__ import annotations

import re

_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(\S+)\s*(.*?);")
_REGISTER = re.compile(r"(gdesc\[)?\bUR(\d+)\b")


def unwritten_reads(sass: str) -> list[str]:
    """Instructions that read a uniform register before any instruction above them wrote it.

    A matrix instruction takes the descriptors of both operands in four registers, or, with its first operand in
    registers of threads, that of the second in the last two of the four.
    """
    written: set[int] = set()
    found = []
    for line in sass.splitlines():
        match = _INSTRUCTION.match(line)
        if match is None:
            continue
        name, operands = match[1], match[2].split(",")
        made: set[int] = set()
        read: set[int] = set()
        for place, operand in enumerate(operands):
            for descriptor, number in _REGISTER.findall(operand):
                first = int(number)
                if place == 0 and name.startswith(("U", "R2UR", "S2UR", "VOTEU", "REDUX")):
                    made |= {first, first + 1} if ".64" in name or ".WIDE" in name else {first}
                elif descriptor:
                    in_registers = operands[1].strip().startswith("R")
                    read |= set(range(first + 2 if in_registers else first, first + 4))
                else:
                    read.add(first)
        if not read <= written:
            found.append(f"{name} {match[2].strip()}")
        written |= made
    return found
