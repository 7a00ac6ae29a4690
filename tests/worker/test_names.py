"""The files, folders and tests that pages, docstrings and comments name are there.

A page names a path from the repository's top, from its own folder, or from the folder of the path
that its paragraph named before; a docstring or comment one from the top, or beside or above its own
file. "..." stands for the rest of a test's name.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "worker"  # where a page's test is whose folder it does not name
TOPS = ("deploy/", "examples/", "export/", "tests/", "training/", "worker/")

PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "worker/PROTOCOL.md",
    *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "deploy").rglob("*.md"))),
]
QUOTED = re.compile(r"`([^`]+)`")
A_PATH = re.compile(rf"(?<![\w./<:-])(?:{'|'.join(TOPS)})[\w./*-]*(?:::[\w.]+)?")
A_NAME = re.compile(r"[\w/]+\.(?:py|md|cpp|h|toml\.example)|[\w/]*\w/")
IN_A_COMMENT = re.compile(r"(?<![\w<./*-])[\w./-]*\w\.py\b(?!\w)")


def wrong_in_page(text: str, home: Path) -> list[str]:
    """Return what a page in folder `home` names and is not there."""
    return [
        wrong
        for part in re.split(r"\n\s*\n|\n(?=\|)", text)
        for wrong in _wrong_in_part(part, home)
    ]


def _wrong_in_part(part: str, home: Path) -> Iterator[str]:
    base, test_file = home, None
    for word in _words(part):
        tested = word.startswith("...") or "test_" in word.rpartition("/")[2]
        if "::" in word or (tested and not word.startswith("tests/")):
            file, _, name = word.rpartition("::") if "::" in word else _alone(word)
            if file:
                folder = ROOT if file.startswith("tests/") else TESTS
                test_file = folder / (file.removesuffix(".py") + ".py")
            if test_file is None or not test_file.is_file() or not _holds(test_file, name):
                yield word
            continue
        found = next(_found(word, (ROOT, base, base.parent)), None)
        if found is None:
            yield word
        elif word.startswith(TOPS):
            base = found if found.is_dir() else found.parent


def _found(word: str, folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from folder.glob(word)


def _alone(word: str) -> tuple[str, str, str]:
    """Tell a test file from a test function of the file named last: that one ends in "..."."""
    return ("", "", word) if "..." in word else (word, "", "")


def _words(part: str) -> Iterator[str]:
    """Yield what names a file, folder or test, in order."""
    spans = [(found.start(), found.group().rstrip(".")) for found in A_PATH.finditer(part)]
    for quoted in QUOTED.finditer(part):
        word = quoted[1]
        named = A_NAME.fullmatch(word) or re.fullmatch(r"[\w/]*test_[\w/.]*(::[\w.]+)?", word)
        if (named or re.fullmatch(r"\.\.\.\w+[\w.]*", word)) and not word.startswith(TOPS):
            spans.append((quoted.start() + 1, word))
    yield from (word for _, word in sorted(spans))


def _holds(test_file: Path, name: str) -> bool:
    """Say whether a test of this name is in the file; "..." at either end: any beginning or end."""
    if not name:
        return True
    inner = re.escape(name.strip("."))
    wanted = ("" if not name.startswith("...") else r"\w*") + inner
    wanted += r"\w*" if name.endswith("...") else ""
    return re.search(rf"^(?:async )?def {wanted}\(", test_file.read_text(), re.M) is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_test_that_a_page_names_is_there(page: str) -> None:
    assert wrong_in_page((ROOT / page).read_text(), (ROOT / page).parent) == []


@pytest.mark.parametrize(("text", "wrong"), [
    ("`worker/store.py`, `saver.py` and `worker/redis/`, where `door.py` is", []),
    ("`worker/score.py`", ["worker/score.py"]),
    ("see worker/redis/redis_client.py.", ["worker/redis/redis_client.py"]),
    ("`worker/handover/` (`listener.py`, `pages.py`)", ["pages.py"]),
    ("`worker/state/`, `verify/`, `nowhere/`", ["nowhere/"]),
    ("`handover.py`", ["handover.py"]),
    ("`worker/process*.py`, worker/thread*.py", ["worker/thread*.py"]),
    ("`test_store`, `redis/test_client`, `test_redis_client`", ["test_redis_client"]),
    ("`test_names::test_every_file_...`, `..._that_a_page_names_...`", []),
    ("tests/worker/test_names.py::test_lost", ["tests/worker/test_names.py::test_lost"]),
    ("`test_names::test_no_such_...`", ["test_names::test_no_such_..."]),
    ("`test_names::test_every_file`", ["test_names::test_every_file"]),
    ("`test_store::test_emit_floor_never_falls`, `..._rises`", ["..._rises"]),
])  # fmt: skip
def test_a_wrong_name_is_found(text: str, wrong: list[str]) -> None:
    assert wrong_in_page(text, ROOT / "worker") == wrong


def names_in_source(text: str) -> Iterator[tuple[int, str]]:
    """Yield the modules that docstrings and comments name, with their lines."""
    said = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines = str(node.value.value).split("\n")
            said += [(node.value.lineno + number, line) for number, line in enumerate(lines)]
    for line, words in said:
        for found in IN_A_COMMENT.findall(words):
            yield line, found


def is_there(name: str, source: Path) -> bool:
    """Say whether a docstring of `source` may name a module so."""
    return any((folder / name).exists() for folder in source.parents if folder.is_relative_to(ROOT))


def sources() -> Iterator[Path]:
    """Yield the modules of this checkout."""
    for top in TOPS:
        yield from sorted((ROOT / top).rglob("*.py"))


def test_every_module_that_a_docstring_or_comment_names_is_there() -> None:
    wrong = [
        f"{source.relative_to(ROOT)}:{line}: {name}"
        for source in sources()
        for line, name in names_in_source(source.read_text())
        if not is_there(name, source)
    ]
    assert wrong == []


def test_a_module_that_is_gone_is_found_in_docstrings_and_comments() -> None:
    text = '"""Called by gone.py.\n\nSee worker/store.py."""\nx = "away.py"  # as lost.py has it\n'
    named = list(names_in_source(text))
    assert sorted(named) == [(1, "gone.py"), (3, "worker/store.py"), (4, "lost.py")]
    source = ROOT / "worker" / "redis" / "door.py"
    assert [name for _, name in sorted(named) if is_there(name, source)] == ["worker/store.py"]
    assert is_there("store.py", source)  # a folder above
