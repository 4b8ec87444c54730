"""Finds in PTX the floating-point instructions whose bits a CPU does not have.

None may be fused, approximate or flush denormal numbers. Nor may a sum or product lack its rounding
(`add.f32` for `add.rn.f32`): ptxas is free to fuse those. Products in the tensor cores are `mma`,
another instruction; only Gram matrices have them, and they are defined up to rounding.
"""

from __future__ import annotations

import re
from collections import Counter

FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64"}
FUNCTION = re.compile(r"^(?:\.visible |\.weak )*\.(?:entry|func) (?:\([^)]*\) )?(\w+)")
INSTRUCTION = re.compile(r"^\s*(?:\{\s*)?(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*\.[\w.:]+)\s")


def is_inexact(opcode: str) -> bool:
    """Whether the result of this instruction may differ from that of IEEE arithmetic."""
    name, *modifiers = opcode.split(".")
    if {"approx", "full", "ftz"} & set(modifiers):
        return True
    fused = name in ("fma", "mad") or (name in ("add", "sub", "mul") and "rn" not in modifiers)
    return fused and bool(FLOATS & set(modifiers))


def inexact(text: str) -> dict[str, Counter[str]]:
    """For each mangled function that has some, how often which of these instructions occurs."""
    found: dict[str, Counter[str]] = {}
    function = ""
    for line in text.splitlines():
        if match := FUNCTION.match(line):
            function = match[1]
        elif (match := INSTRUCTION.match(line)) and is_inexact(match[1]):
            found.setdefault(function, Counter())[match[1]] += 1
    return found
