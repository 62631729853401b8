"""MkDocs hook: formulas of the pages become MathML while the site is built.

The pages write formulas as `$...$` and `$$...$$`, which GitHub renders too. `pymdownx.arithmatex` finds them, and this
hook converts them with latex2mathml. Browsers draw MathML themselves, so that the site needs no script and no network.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# TeX puts a thin space around the name of a function, but none beside brackets and signs.
_BEFORE = re.compile(r"(</(?:mi|mn|msub|msup)>)(?=<mi>(?:log|ln)</mi>)")
_AFTER = re.compile(r"(<mi>(?:log|ln)</mi>)(?!<mo|</)")
_SPACE = r'\1<mspace width="0.17em"/>'


def mathml(latex: str, display: str = "inline") -> str:
    """A formula as a `<math>` element; `display` is "inline" or "block"."""
    element = _AFTER.sub(_SPACE, _BEFORE.sub(_SPACE, convert(latex, display=display)))
    return element.replace("&#x029F5;", "&#x02216;")  # \setminus as the sign that common fonts have


def on_page_content(content: str, **_: object) -> str:
    """The HTML of a page with every formula converted."""

    def converted(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return mathml(html.unescape(match[3]).strip(), display)

    return _FORMULA.sub(converted, content)
