"""What `keyfold-train init` writes is read back as it was meant."""

from __future__ import annotations

import tomllib

import pytest

from keyfold.training.init.lines import listed, quoted


@pytest.mark.parametrize("text", ["", 'a "b" \\', "\x7f\x00\t\n", "ü😀"])
def test_a_text_is_read_back_whatever_it_holds(text: str) -> None:
    assert tomllib.loads(f"a = {quoted(text)}") == {"a": text}
    many = [text] * 40
    assert tomllib.loads("\n".join(listed("a", many))) == {"a": many}
