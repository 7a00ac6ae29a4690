"""How translations are judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accuracy import multi30k

EN = ["a man in a blue hat stands there .", "two dogs run over green grass ."]
DE = ["ein Mann mit einem blauen Hut steht dort .", "zwei Hunde laufen über grünes Gras ."]
EVENTS: dict[str, list[dict[str, Any]]] = {
    f"test-{n}": [{"en": en, "de": de}] for n, (en, de) in enumerate(zip(EN, DE, strict=True))
}


def answers(texts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Return predictions: a symbol that was said, and the one that ends the answer."""
    return {f"test-{n}": [{"symbol": "x"}, {"text": text}] for n, text in enumerate(texts)}


def test_a_right_translation_is_worth_a_hundred(capsys: pytest.CaptureFixture[str]) -> None:
    figures = multi30k.judge(EVENTS, answers(DE))
    assert figures == {"bleu": pytest.approx(100.0), "length_ratio": 1.0}
    shown = capsys.readouterr().out
    assert "  en: a man in a blue hat stands there ." in shown
    assert "said: zwei Hunde laufen" in shown


def test_a_translation_is_judged_over_all_events() -> None:
    half = multi30k.judge(EVENTS, answers([DE[0], "nichts"]))["bleu"]
    assert 0 < half < 100
    assert multi30k.judge(EVENTS, answers(["nichts", ""]))["bleu"] == pytest.approx(0.0)


def test_the_source_as_it_is_is_a_baseline(tmp_path: Path) -> None:
    rows = [json.dumps(pair[0]) for pair in EVENTS.values()]
    (tmp_path / "test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert multi30k.copied(tmp_path)["the source as it is"]["bleu"] < 10
