"""What a study says: claims that held or did not, and the table that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Claim:
    """A sentence, whether it holds, and what was measured."""

    text: str
    held: bool
    numbers: str


def table(title: str, claims: Mapping[str, Sequence[Claim]]) -> Table:
    """Each section's claims, whether they held, and their numbers; a section may have no name."""
    named = any(claims)
    view = Table(title=title, title_style="bold", show_lines=True)
    if named:
        view.add_column("section")
    view.add_column("claim", ratio=2)
    view.add_column("held")
    view.add_column("numbers", ratio=3)
    for section, made in claims.items():
        for claim in made:
            row = [claim.text, "yes" if claim.held else "NO", claim.numbers]
            view.add_row(*([section] if named else []), *row, style="" if claim.held else "red")
    return view
