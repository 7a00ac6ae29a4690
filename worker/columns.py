"""Lines that fit a terminal of 80 columns.

Owns cutting and wrapping only. Called by the commands of a first day: init, check and --dry-run.
"""

from __future__ import annotations

import textwrap

WIDTH = 80


def shortened(text: str, width: int = WIDTH) -> str:
    """Cut a line that is too long, visibly; what a terminal would act on is shown as `?`."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return plain if len(plain) <= width else f"{plain[: width - 3]}..."


def wrapped(head: str, text: str, width: int = WIDTH) -> list[str]:
    """Put `head` before a text and wrap it; further lines are indented as wide as `head`."""
    plain = "".join(c if c.isprintable() else "?" for c in text)
    return textwrap.wrap(
        plain, width, initial_indent=head, subsequent_indent=" " * len(head),
        break_long_words=False, break_on_hyphens=False,
    ) or [head.rstrip()]  # fmt: skip
