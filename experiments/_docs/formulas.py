"""Formulas as MathML: what a browser shows without asking anyone for anything."""

import re
from collections.abc import Callable
from typing import Any

_CODE = r"```.*?```|``.+?``|`[^`\n]+`"
_PARTS = re.compile(
    rf"(?P<code>{_CODE})|\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$`]+?)\$(?!\d)",
    re.DOTALL,
)
_PLACE = re.compile(r"(?:<p>\s*)?formula(block|inline)(\d+)end(?:\s*</p>)?")


def with_formulas(to_html: Callable[[str], Any]) -> Callable[[str], Any]:
    """A renderer of Markdown whose `$…$` and `$$…$$` become MathML.

    Formulas are taken out before the renderer sees them, for `_` and `*` mean
    something else to it, and put back into its page. Code is left alone.
    """

    def convert(text: str) -> Any:
        found: list[str] = []

        def take(match: re.Match[str]) -> str:
            if match["code"] is not None:
                return match["code"]
            kind = "block" if match["block"] is not None else "inline"
            found.append(mathml(match[kind], display=kind))
            return f"formula{kind}{len(found) - 1}end"

        page = to_html(_PARTS.sub(take, text))

        def put(match: re.Match[str]) -> str:
            formula = found[int(match[2])]
            alone = match[1] == "block"
            if alone and match[0].startswith("<p>") and match[0].endswith("</p>"):
                return formula
            start = "<p>" if match[0].startswith("<p>") else ""
            end = "</p>" if match[0].endswith("</p>") else ""
            return start + formula + end

        return _like(page, _PLACE.sub(put, str(page)))

    return convert


def mathml(latex: str, *, display: str) -> str:
    """One formula; `display` is "block" or "inline"."""
    from latex2mathml.converter import convert

    joined = " ".join(latex.split())
    joined = re.sub(r"\\(arg)\b", r"\\operatorname{\1}", joined)  # not known to it
    made = convert(joined, display=display)
    return f'<div class="formula">{made}</div>' if display == "block" else made


def _like(page: Any, text: str) -> Any:
    """`text` as a page of the same kind, with the same table of contents."""
    made = type(page)(text)
    for name in ("toc_html", "metadata"):
        if hasattr(page, name):
            setattr(made, name, getattr(page, name))
    return made
