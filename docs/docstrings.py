"""What griffe does to docstrings besides its own: the reference shows them as help() does."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

# The marker that FusedOptimizer replaces by the options' own arguments: here, a link.
MARKER = "**options: See `fusedstep.optim.Options`."
LINK = "**options: See [`Options`][fusedstep.optim.Options]."


class Docstrings(Extension):
    """Reads `Example:` as a section of examples, and links the options."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = text.replace(MARKER, LINK)
