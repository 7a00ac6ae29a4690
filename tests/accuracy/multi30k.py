"""Multi30k: image descriptions translated from English to German.

Owns what is judged: BLEU (Papineni et al. 2002) of the whole test set by sacrebleu's defaults
(cased, tokenizer 13a; Post 2018), over the texts that answers spell.
"""

from __future__ import annotations

import json
from pathlib import Path

from accuracy.task import TEST, Answers, Events, Figures, Task

from keyfold.training.datasets import multi30k

SHOWN = 5  # translations printed


def judge(events: Events, answers: Answers) -> Figures:
    """Compare each answer's text with the German description."""
    from sacrebleu.metrics.bleu import BLEU

    said = [_text(answers[key]) for key in events]
    right = [str(pair[0]["de"]) for pair in events.values()]
    for (_, pair), text in list(zip(events.items(), said, strict=True))[:SHOWN]:
        print(f"   en: {pair[0]['en']}\n   de: {pair[0]['de']}\n said: {text}\n")
    found = BLEU().corpus_score(said, [right])
    return {"bleu": float(found.score), "length_ratio": float(found.sys_len / found.ref_len)}


def _text(outputs: list[dict[str, object]]) -> str:
    """Return an event's answer: the member of its last symbol's prediction."""
    return str(outputs[-1]["text"])


def copied(folder: Path) -> dict[str, Figures]:
    """Judge the source itself as the answer: names and numbers alone are right."""
    from sacrebleu.metrics.bleu import BLEU

    with (folder / TEST).open(encoding="utf-8") as log:
        pairs = [json.loads(line) for line in log]
    found = BLEU().corpus_score([p["en"] for p in pairs], [[p["de"] for p in pairs]])
    return {"the source as it is": {"bleu": float(found.score)}}


TASKS = (
    Task(
        name="multi30k",
        title="Multi30k en-de, BLEU of test_2016_flickr",
        source="multi30k",
        config="multi30k",
        prepare=multi30k.write,
        judge=judge,
        main="bleu",
        seeds=1,
        baselines=copied,
        published={"text-only, several systems": {"bleu": 33.0}},
    ),
)
