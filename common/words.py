"""Words that depend on numbers."""

from __future__ import annotations


def counted(number: int, what: str) -> str:
    """A number and a noun whose plural has an s: "1 change", "2 changes"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
