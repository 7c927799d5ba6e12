"""A hook of mkdocs: names do not break in a line of text, as ``--max-async-tasks``.

No style can say so: a browser may break a line after any hyphen. So each such word of
inline code becomes an element of its own, which docs/assets/extra.css keeps whole. A
word that is too long for a phone may break behind its dots and brackets.
"""

from __future__ import annotations

import re
from typing import Any, Final

#: Characters of the longest word that fits on a phone.
LONGEST: Final = 36

_BLOCK: Final = re.compile(r"(<pre\b.*?</pre>)", re.DOTALL)
_CODE: Final = re.compile(r"(<code>)([^<]*)(</code>)")
_WORD: Final = re.compile(r"\S+")
_JOINT: Final = re.compile(r"[.(/=,]")


def on_page_content(html: str, **_: Any) -> str:
    """Mark these words, but not those in blocks."""
    parts = _BLOCK.split(html)
    parts[::2] = [_CODE.sub(_marked, each) for each in parts[::2]]
    return "".join(parts)


def _marked(code: re.Match[str]) -> str:
    start, content, end = code.groups()
    return start + _WORD.sub(_whole, content) + end


def _whole(word: re.Match[str]) -> str:
    text = word[0]
    if len(text) > LONGEST:
        return _JOINT.sub(r"\g<0><wbr>", text)
    return f'<span class="whole">{text}</span>' if "-" in text else text
