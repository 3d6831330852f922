"""Addresses of streams and pictures, as in rtsp://camera/1."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from detkit.data.pictures import IMAGE_SUFFIXES

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(source: str) -> bool:
    """Whether the source has a scheme, as in rtsp://."""
    return _URL.match(source) is not None


def is_picture_url(source: str) -> bool:
    """Whether a URL names a single picture, by the suffix of its path."""
    return Path(urlsplit(source).path).suffix.lower() in IMAGE_SUFFIXES


def without_password(source: str) -> str:
    """The source as it may be shown: a URL without user, password and query, anything else as it is."""
    if not is_url(source):
        return source
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
