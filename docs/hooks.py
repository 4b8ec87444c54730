"""What mkdocs does besides its own: pages and figures from outside docs/, links, nothing remote."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# What the site shows from where it is in the repository.
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "bench/gpu/README.md")
RESULTS = ("png", "svg", "csv", "json")  # of bench/results, which pages show or link to

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[\w-]+)?\)")
LOAD = re.compile(
    r"<(?:script|img|iframe|source|link(?![^>]*rel=\"?canonical))\b[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>"
)
# Inline code that may name something in the reference; not inside of a link or a heading.
NAME = re.compile(r"<a\b.*?</a>|<h\d\b.*?</h\d>|<code>(fusedstep(?:\.\w+)+)</code>", re.DOTALL)
FIGURE = re.compile(r'<img\b[^>]*\bsrc="([^"#]+\.(?:png|svg))[^"]*"[^>]*>')
# A figure as GitHub chooses it for light and dark pages; the site has a switch of its own.
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">'
    r'\s*<img alt="([^"]*)" src="([^"]+)"[^>]*>\s*</picture>'
)


def on_files(files: Files, config: Any) -> Files:
    """Adds what is outside of docs/, under its path in the repository."""
    results = [p for kind in RESULTS for p in sorted(ROOT.glob(f"bench/results/**/*.{kind}"))]
    for path in (*(ROOT / name for name in OUTSIDE), *results):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Turns links between files of the repository into links of the site.

    Links to files that the site does not have, such as sources, become plain text.
    """
    here = page.file.src_uri
    folder = posixpath.dirname(here if here in OUTSIDE else f"docs/{here}")

    def in_site(link: re.Match[str]) -> str:
        image, text, path, anchor = link.groups(default="")
        target = posixpath.normpath(posixpath.join(folder, path))
        name = target.removeprefix("docs/")
        if files.get_file_from_path(name) is not None:
            return f"{image}[{text}]({posixpath.relpath(name, posixpath.dirname(here))}{anchor})"
        return text if (ROOT / target).exists() else link[0]  # which mkdocs refuses

    chosen = r"![\2](\3#only-light)\n![\2](\1#only-dark)"
    return LINK.sub(in_site, PICTURE.sub(chosen, markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Links every inline `fusedstep.name` to the reference, and every figure to itself in full."""

    def linked(found: re.Match[str]) -> str:
        name = found[1]
        if not name:
            return found[0]
        return f'<autoref optional identifier="{name}"><code>{name}</code></autoref>'

    return FIGURE.sub(r'<a href="\1">\g<0></a>', NAME.sub(linked, html))


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuses a page that loads anything from another host."""
    if found := LOAD.search(output):
        raise PluginError(f"{page.file.src_uri} loads from the network: {found[0]}")
    return output
