"""Which symbol follows from probabilities and a number, and what symbols spell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from keyfold.export.errors import SpecError
from keyfold.export.generation import Chooser, Generate, Spelling, numbers_of
from keyfold.export.outputs import OutputSpec
from keyfold.export.text import END, FIRST, UNKNOWN, Reader, Text

NAMES = ("<end>", "<unknown>", "a", "b", "c")
A, B, C = range(FIRST, FIRST + 3)


def chooser(**settings: Any) -> Chooser:
    return Chooser(Generate(5, **settings), NAMES)


def choose(chosen: Chooser, y: list[list[float]], numbers: list[float]) -> list[int]:
    symbols, _ = chosen.choose(np.array(y, np.float32), np.array(numbers))
    found: list[int] = symbols.tolist()
    return found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"most": 0}, "outputs.generate.most: expected 1 to 512, got 0"),
        ({"most": 513}, "outputs.generate.most: expected 1 to 512, got 513"),
        ({"most": 5, "temperature": -1.0}, "temperature: expected 0 to 100, got -1.0"),
        ({"most": 5, "top_k": -1}, "top_k: expected at least 0, got -1"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        Generate(**settings)


def test_the_manifest_holds_what_is_set_and_nothing_else() -> None:
    for generate in (Generate(7), Generate(7, 0.5, 3, "a")):
        assert Generate.from_json(generate.to_json()) == generate
    assert Generate(7).to_json() == {"most": 7}
    with pytest.raises(SpecError, match="unknown \\['beams'\\]"):
        Generate.from_json({"most": 7, "beams": 4})


def test_an_answer_ends_with_a_symbol_that_there_is() -> None:
    with pytest.raises(SpecError, match="until: expected one of the symbols, got 'z'"):
        OutputSpec("classification", NAMES, generate=Generate(5, until="z"))
    with pytest.raises(SpecError, match="until: expected one of the symbols, got '<unknown>'"):
        OutputSpec("classification", NAMES, generate=Generate(5, until="<unknown>"))
    with pytest.raises(SpecError, match=r"generate: expected next symbols alone"):
        OutputSpec("regression", ("a",), generate=Generate(5))


def test_an_event_has_the_same_numbers_for_ever() -> None:
    """A replay has to choose what was chosen: these numbers stand in people's topics."""
    assert numbers_of("7a830d38281a9f5a", "in:0:1", 3).tolist() == [
        0.3894636583212643, 0.7206222917950725, 0.4518827558133369,
    ]  # fmt: skip
    more = numbers_of("7a830d38281a9f5a", "in:0:1", 500)
    assert more[:3].tolist() == numbers_of("7a830d38281a9f5a", "in:0:1", 3).tolist()
    assert numbers_of("7a830d38281a9f5a", "in:0:2", 1)[0] != more[0]
    assert ((more >= 0) & (more < 1)).all()
    assert abs(more.mean() - 0.5) < 0.05


def test_the_likeliest_symbol_is_chosen_without_a_temperature() -> None:
    y = [[0.1, 0.2, 0.3, 0.4, 0.0], [0.5, 0.0, 0.1, 0.2, 0.2], [0.0, 0.0, 0.4, 0.4, 0.2]]
    assert choose(chooser(), y, [0.0, 0.0, 0.0]) == [B, END, A]


def test_the_unknown_symbol_is_never_chosen() -> None:
    y = [[0.1, 0.8, 0.1, 0.0, 0.0]] * 2
    assert UNKNOWN not in choose(chooser(), y, [0.5, 0.5])
    assert UNKNOWN not in choose(chooser(temperature=1.0), y, [0.3, 0.999])
    assert choose(chooser(), [[0.0, 1.0, 0.0, 0.0, 0.0]], [0.5]) == [END]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2}])
def test_a_result_that_is_not_finite_ends_the_answer(settings: dict[str, Any]) -> None:
    y = np.array([[0.2, 0.2, np.nan, 0.2, 0.2], [np.inf, 0, 0, 0, 0]], np.float32)
    symbols, probabilities = chooser(**settings).choose(y, np.array([0.9, 0.9]))
    assert (symbols.tolist(), probabilities.tolist()) == ([END, END], [0.0, 0.0])


def test_a_number_chooses_by_the_share_of_each_symbol() -> None:
    y = [[0.1, 0.0, 0.2, 0.3, 0.4]] * 6
    numbers = [0.0, 0.099, 0.101, 0.299, 0.599, 0.999]
    assert choose(chooser(temperature=1.0), y, numbers) == [END, END, A, A, B, C]


def test_only_the_likeliest_are_chosen_from_of_equal_ones_the_first() -> None:
    y = [[0.2, 0.0, 0.2, 0.4, 0.2]] * 4
    found = choose(chooser(temperature=1.0, top_k=2), y, [0.0, 0.3, 0.4, 0.99])
    assert found == [END, END, B, B]


def test_a_low_temperature_prefers_the_likeliest() -> None:
    y, numbers = [[0.1, 0.0, 0.2, 0.3, 0.4]] * 1000, np.linspace(0, 1, 1000, endpoint=False)
    shares = [
        choose(chooser(temperature=t), y, numbers.tolist()).count(C) for t in (0.25, 1.0, 4.0)
    ]
    assert shares[0] > 700 > shares[1] > 380 > shares[2] > 280


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.7, 1.0]), st.sampled_from([0, 1, 7]))
def test_who_is_answered_beside_changes_no_choice(seed: int, temperature: float, top: int) -> None:
    draw = np.random.default_rng(seed)
    names = tuple(f"s{n}" for n in range(40))
    chosen = Chooser(Generate(5, temperature, top, "s0"), names)
    y = draw.dirichlet(np.full(40, 0.1), 9).astype(np.float32)
    y[draw.integers(0, 9)] = np.nan
    numbers = draw.random(9)
    symbols, probabilities = chosen.choose(y, numbers)
    for row in range(9):
        one = chosen.choose(y[row : row + 1], numbers[row : row + 1])
        assert (one[0][0], one[1][0]) == (symbols[row], probabilities[row])


def spelt_again(text: Text, said: str) -> str:
    symbols: NDArray[np.float32] = Reader(text).read(said)
    return Spelling(text).text(symbols.astype(np.int64).tolist())


@given(st.text())
def test_bytes_spell_the_text_that_they_were_read_from(said: str) -> None:
    said = said.encode(errors="ignore").decode()
    merges = ((FIRST + 0x20, FIRST + 0x61), (FIRST + 0x61, FIRST + 0x62))
    assert spelt_again(Text("line"), said) == said
    assert spelt_again(Text("line", "bpe", merges=merges), said) == said


def test_characters_and_words_spell_what_they_know() -> None:
    assert spelt_again(Text("line", "char", ("a", " ", "ß")), "a ßxa") == "a ßa"
    assert (
        spelt_again(Text("line", "word", ("Hut", ",", "ein")), "ein  Hut,x ein") == "ein Hut , ein"
    )


def test_bytes_that_are_no_text_are_replaced() -> None:
    spelling = Spelling(Text("line"))
    assert (
        spelling.text([FIRST + 0x61, FIRST + 0xC3, FIRST + 0x62, FIRST + 0xFF]) == "a\ufffdb\ufffd"
    )
