"""The search of the site: sections of guides before the names of the library."""

import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict

_SCRIPT = Path(__file__).parent / "templates" / "guides_first.js"
_HEADING = re.compile(r'<h[1-4] id="([^"]+)">(.*?)</h[1-4]>', re.DOTALL)
_PARAGRAPH = re.compile(r"<p>(.*?)</p>", re.DOTALL)


class Section(TypedDict):
    """A section of a guide, as pdoc's search shows what it finds."""

    modulename: str
    qualname: str  # its anchor
    fullname: str  # "Guide: heading"
    heading: str
    kind: str
    doc: str  # its first paragraph, HTML without links


def guides_first(pages: Mapping[str, str]) -> str:
    """A script that goes behind pdoc's search index.

    Args:
        pages: from the name of a guide's module to its page.
    """
    sections = [part for name, page in pages.items() for part in _sections(name, page)]
    sections.sort(key=lambda section: section["fullname"] != section["heading"])
    content = json.dumps(sections).replace("</", "<\\/")
    script = _SCRIPT.read_text(encoding="utf-8")
    return script.replace("SECTIONS", content, 1)


def _sections(name: str, page: str) -> Iterator[Section]:
    """Of one guide; its title is the first."""
    _, _, told = page.partition('<div class="docstring">')
    headings = list(_HEADING.finditer(told))
    ends = [*(found.start() for found in headings[1:]), len(told)]
    title = _text(headings[0][2]) if headings else ""
    for found, end in zip(headings, ends, strict=True):
        heading = _text(found[2])
        first = _PARAGRAPH.search(told, found.end(), end)
        yield Section(
            modulename=name,
            qualname=found[1],
            fullname=heading if found is headings[0] else f"{title}: {heading}",
            heading=heading,
            kind="guide",
            doc=re.sub(r"</?a\b[^>]*>", "", first[0]) if first else "",
        )


def _text(inner: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", inner)).split())
