"""Text as the tools of every system write it."""

from __future__ import annotations

import codecs

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def decode_text(content: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a file. A byte order mark decides (Notepad and PowerShell write UTF-16), else `encoding`.

    `errors` is that of `bytes.decode`. Raises UnicodeDecodeError, and LookupError if Python does not know the encoding.
    """
    return content.decode(next((name for mark, name in _MARKS.items() if content.startswith(mark)), encoding), errors)
