"""Answers of a worker's pipeline, without Kafka: what is bounded, what enters no key's state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_log import Rec
from speaking_bundle import SPOKEN, make_answering_bundle, make_speaking_bundle
from text_bundle import BROKEN, make_text_bundle, text_event

from keyfold.export.bundle import Bundle
from keyfold.export.generation import Generate, Spelling
from keyfold.export.settings import SettingsError
from keyfold.worker.emission import Emission
from keyfold.worker.emit_settings import Emit
from keyfold.worker.generation import MOST_SAID, most_events
from keyfold.worker.model import Model
from keyfold.worker.tail.view import read_prediction
from keyfold.worker.trial import Trial


def answered(bundle: Bundle, texts: list[str], keys: int = 1, **options: Any) -> list[Any]:
    """Return the predictions for texts of some keys in turn, in the order of their ids."""
    trial = Trial(Model(bundle), "in", **options)
    records = [Rec(n, b"k%d" % (n % keys), text_event(t, n), n) for n, t in enumerate(texts)]
    outputs = trial.run([(0, records)])
    return [json.loads(payload) for _, one in outputs for payload in one.payloads]


def test_an_answer_is_as_many_predictions_as_it_has_symbols(tmp_path: Path) -> None:
    found = answered(make_answering_bundle(tmp_path), ["a", "b", "a"], 2)
    by_event: dict[str, list[Any]] = {}
    for prediction in found:
        by_event.setdefault(prediction["id"].rsplit(":", 1)[0], []).append(prediction)
    assert list(by_event) == ["in:0:0", "in:0:1", "in:0:2"]
    for event, (cause, said) in enumerate(by_event.items()):
        assert [p["id"] for p in said] == [f"{cause}:{index}" for index in range(len(said))]
        assert {(p["about"], p["time"], p["steps"]) for p in said} == {
            (cause, event, event // 2 + 1)
        }
        assert [p.get("last", False) for p in said] == [False] * (len(said) - 1) + [True]
        symbols = [p["output"]["symbol"] for p in said]
        numbers = [SPOKEN.names.index(symbol) for symbol in symbols]
        assert said[-1]["output"]["text"] == Spelling(SPOKEN).text(numbers)
        assert symbols[-1] == "<end>" or len(said) == 12
        assert all(0 <= p["output"]["probability"] < 1 for p in said)


def test_an_answer_ends_at_its_most_symbols(tmp_path: Path) -> None:
    bundle = make_speaking_bundle(tmp_path, Generate(3, temperature=5.0))
    found = answered(bundle, [f"text {n}" for n in range(50)])
    counts = [int(p["id"].rsplit(":", 1)[1]) + 1 for p in found if "last" in p]
    assert len(counts) == 50
    assert max(counts) == 3


def test_what_is_said_enters_no_keys_state(tmp_path: Path) -> None:
    """The same texts leave the same state, whatever is answered."""
    texts = ["one", "two", "three"]
    left = []
    for generate in (Generate(1), Generate(30, 1.0), Generate(30, 1.0, 5)):
        trial = Trial(Model(make_speaking_bundle(tmp_path, generate)), "in")
        trial.run([(0, [Rec(n, b"k", text_event(t, n), n) for n, t in enumerate(texts)])])
        slot = trial.slots.of(0)[b"k"]
        left.append({name: values[slot].tolist() for name, values in trial.slots.tensors.items()})
    assert left[0] == left[1] == left[2]


def test_an_answer_goes_by_the_keys_history_in_a_dialogue_alone(tmp_path: Path) -> None:
    for anew, same in ((True, True), (False, False)):
        bundle = make_answering_bundle(tmp_path, Generate(12), anew=anew)
        both = answered(bundle, ["first", "first"])
        texts = [[p["output"] for p in both if p["about"] == f"in:0:{n}"] for n in (0, 1)]
        assert (texts[0] == texts[1]) is same


def test_a_text_that_is_not_finite_is_a_reject_and_not_answered(tmp_path: Path) -> None:
    bundle = make_speaking_bundle(tmp_path)
    trial = Trial(Model(bundle), "in")
    texts = ["good", f"bad{BROKEN}", "good"]
    records = [Rec(n, b"k", text_event(text, n), n) for n, text in enumerate(texts)]
    ((_, outputs),) = trial.run([(0, records)])
    found = [json.loads(payload) for payload in outputs.payloads]
    assert {p["about"] for p in found} == {"in:0:0", "in:0:2"}
    assert [letter.reason for letter in outputs.dead_letters] == [
        "the step's result is not finite; the key's state is unchanged"
    ]
    assert {p["steps"] for p in found if p["about"] == "in:0:2"} == {2}


def test_long_texts_are_read_in_calls_of_the_models_own_length(tmp_path: Path) -> None:
    """Three texts of other lengths side by side, longer than a call's 16 steps."""
    texts = ["x" * 40, "yz", "w" * 17]
    bundle = make_speaking_bundle(tmp_path, Generate(8, 1.0))
    together = answered(bundle, texts, 3)
    model = Model(bundle)
    for n, text in enumerate(texts):
        alone = Trial(model, "in")
        ((_, outputs),) = alone.run([(0, [Rec(n, b"k%d" % n, text_event(text, n), n)])])
        want = [json.loads(payload)["output"] for payload in outputs.payloads]
        assert [p["output"] for p in together if p["about"] == f"in:0:{n}"] == want


def test_a_micro_batch_says_a_bounded_number_of_symbols(tmp_path: Path) -> None:
    assert most_events(make_speaking_bundle(tmp_path, Generate(512))) == MOST_SAID // 512
    assert most_events(make_speaking_bundle(tmp_path, Generate(1))) == MOST_SAID
    assert most_events(make_text_bundle(tmp_path)) > 1 << 60


def test_a_rule_of_what_is_emitted_is_refused(tmp_path: Path) -> None:
    outputs = make_speaking_bundle(tmp_path).manifest.outputs
    with pytest.raises(SettingsError, match=r"\[emit\]: expected what = 'all'.*generate"):
        Emission.of(Emit(what="on_change"), outputs)


def test_members_of_the_event_are_repeated_beside_each_symbol(tmp_path: Path) -> None:
    found = answered(make_answering_bundle(tmp_path), ["hello"], passthrough=("line",))
    assert len(found) > 1
    assert all(p["event"] == {"line": "hello"} for p in found)


def test_a_person_sees_the_text_of_an_answer(tmp_path: Path) -> None:
    found = answered(make_answering_bundle(tmp_path), ["hello"])
    for prediction in found:
        shown = read_prediction(json.dumps(prediction).encode())
        assert shown is not None
        parts = [part.name for part in shown.parts]
        assert parts == [v for k, v in prediction["output"].items() if k != "probability"]


def test_choices_are_as_likely_as_the_model_says(tmp_path: Path) -> None:
    """Four hundred answers to one text, each seeded by its own event."""
    bundle = make_answering_bundle(tmp_path, Generate(1, temperature=1.0))
    found = answered(bundle, ["the same"] * 400)
    said: dict[str, list[float]] = {}
    for prediction in found:
        output = prediction["output"]
        said.setdefault(output["symbol"], []).append(output["probability"])
    for chances in said.values():
        assert len(set(chances)) == 1  # each event is read anew
        assert abs(len(chances) / 400 - chances[0]) < 4 * np.sqrt(0.25 / 400)
