"""What a public docstring must have; its examples and those of a page, run as they stand."""

from __future__ import annotations

import doctest
import functools
import inspect
import re
from pathlib import Path
from typing import Any

import torch

import fusedstep

BLOCK = re.compile(r"^(?:```python|<!-- python)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)


def check(documented: Any, example: bool = True) -> None:
    """Explains every argument in `Args:`, and what it returns and raises; its examples hold."""
    text, name = inspect.getdoc(documented) or "", documented.__name__
    signature = inspect.signature(documented)
    parameters = [p for p in signature.parameters if p != "self"]
    explained = list(explanations(text))
    assert explained == parameters, f"{name}: Args are {explained}, parameters {parameters}"
    returns = not inspect.isclass(documented) and signature.return_annotation != "None"
    assert not returns or _section(text, "Returns"), f"{name} has no Returns"
    assert _section(text, "Raises"), f"{name} has no Raises"
    globs = {"torch": torch, "fusedstep": fusedstep, "functools": functools}
    globs |= vars(inspect.getmodule(documented)) | vars(fusedstep.schedules)
    examples = doctest.DocTestFinder(recurse=False).find(documented, name, globs=globs)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not example or any(found.examples for found in examples), f"{name} has no example"
    report: list[str] = []
    for found in examples:
        runner.run(found, out=report.append, clear_globs=False)
    assert runner.failures == 0, "".join(report)


def check_page(page: Path, least: int = 0, after: str = "", before: str | None = None) -> None:
    """Its Python blocks, at least so many, run one after another and print what they print there.

    Those between the headings `after` and `before`, if they are given. A comment that starts with
    `<!-- python` is a block that readers do not see: what the ones after it need to run.
    """
    text = page.read_text()
    text = text[text.index(after) : None if before is None else text.index(before)]
    blocks = BLOCK.findall(text)
    assert len(blocks) >= least
    names: dict[str, Any] = {"__name__": page.stem}
    report: list[str] = []
    for i, code in enumerate(blocks):
        if code.startswith(">>> "):
            # Each has a name of its own, by which doctest finds the lines of functions.
            name = f"{page.name}, block {i}"
            test = doctest.DocTestParser().get_doctest(code, {}, name, str(page), 0)
            test.globs = names  # the same for all blocks: functions see what later ones assign
            found = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
            assert found.failed == 0, "".join(report)
        else:
            exec(compile(code, f"{page}, after {code.splitlines()[0]!r}", "exec"), names)


def explanations(text: str) -> dict[str, str]:
    """The entries of a docstring's `Args:`, in their order."""
    _, *parts = re.split(r"^    (\w+): ", _section(text, "Args"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _section(text: str, title: str) -> str:
    """What is indented under `title:`; empty where there is no such section."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", text + "\n", flags=re.MULTILINE)
    return found[1] if found else ""
