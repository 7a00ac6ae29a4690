"""What is odd about events that are no rejects: order, missing fields, values never seen, times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from text_bundle import make_text_bundle, text_event
from tiny_bundle import make_tiny_bundle

from keyfold.export.features import FeatureSpec, Field, LongForm
from keyfold.worker.check.event_look import MOST_FIELDS, EventLook, time_range
from keyfold.worker.kafka.samples import Sample, Taken

BEGIN_MS = 1_700_000_000_000
SPEC = FeatureSpec(
    (
        Field("a"),
        Field("m", missing="mask"),
        Field("l", missing="last"),
        Field("site", "category", ("north", "south")),
        Field("mode", "category", ("on",), "last"),
        Field("shift", "category", ("day",), "mask"),
    )
)
WHOLE = {"a": 1, "m": 1, "l": 1, "site": "north", "mode": "on", "shift": "day"}


def found(
    folder: Path, events: list[dict[str, Any]], spec: FeatureSpec = SPEC, **options: Any
) -> list[tuple[bool, str]]:
    """Return the findings about these events of one key, a second apart unless they say."""
    manifest = make_tiny_bundle(folder, features=spec, **options).manifest
    look = EventLook(manifest, "in")
    records = [
        Taken(at, 5_000, b"k", json.dumps({"time": BEGIN_MS + 1000 * at, **event}).encode())
        for at, event in enumerate(events)
    ]
    look.add(Sample(0, []))
    look.add(Sample(3, records))
    return list(look.findings())


def test_events_in_order_that_lack_nothing_show_their_times_alone(tmp_path: Path) -> None:
    assert found(tmp_path, [WHOLE] * 3) == [
        (False, "event times: 2023-11-14T22:13:20Z .. 2023-11-14T22:13:22Z")
    ]


def test_events_that_go_back_within_their_key_are_a_warning(tmp_path: Path) -> None:
    events = [{**WHOLE, "time": BEGIN_MS + time} for time in (5, 3, 4, 5)]
    assert found(tmp_path, events)[1:] == [
        (
            True,
            "2 of 4 events go back in time within their key (first at in:3:1): a history is folded "
            "in the order of the topic",
        )
    ]


def test_events_of_other_keys_and_rejects_do_not_count(tmp_path: Path) -> None:
    look = EventLook(make_tiny_bundle(tmp_path).manifest, "in")
    value = b'{"time":%d,"a":1,"b":2}'
    look.add(Sample(0, [
        Taken(0, 0, b"k", value % (BEGIN_MS + 2000)), Taken(1, 0, b"j", value % BEGIN_MS),
        Taken(2, 0, b"k", b"{"), Taken(3, 0, None, value % 1), Taken(4, 0, b"k", None),
    ]))  # fmt: skip
    assert list(look.findings()) == [
        (False, "event times: 2023-11-14T22:13:20Z .. 2023-11-14T22:13:22Z")
    ]


def test_a_field_that_most_events_lack_is_a_warning(tmp_path: Path) -> None:
    without = {name: value for name, value in WHOLE.items() if name != "l"}
    events = [{**without, "m": None, "mode": None, "shift": None}, without, {**WHOLE, "mode": None}]
    assert found(tmp_path, events)[1:] == [
        (True, "field 'l' is missing in 2 of 3 events (67%); the key's last value stands in"),
        (True, "field 'mode' is missing in 2 of 3 events (67%); the key's last value stands in"),
        (False, "field 'm' is missing in 1 of 3 events (33%); 0 stands in"),
        (False, "field 'shift' is missing in 1 of 3 events (33%); no value stands in"),
    ]


def test_values_that_the_model_never_saw_are_counted(tmp_path: Path) -> None:
    events = [{**WHOLE, "site": "moon"}, {**WHOLE, "site": "mars", "mode": "off"}, WHOLE]
    assert found(tmp_path, events)[1:] == [
        (True, "field 'site' has a value that the model never saw in 2 of 3 events (67%)"),
        (False, "field 'mode' has a value that the model never saw in 1 of 3 events (33%)"),
    ]


def test_of_many_fields_the_worst_are_told(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(MOST_FIELDS + 3)]
    spec = FeatureSpec(tuple(Field(name, missing="mask") for name in names))
    told = found(tmp_path, [dict.fromkeys(names)], spec)[1:]
    assert len(told) == MOST_FIELDS + 1
    assert told[-1] == (False, "and 3 further fields")


def test_one_sensor_an_event_lacks_nothing(tmp_path: Path) -> None:
    fields = (Field("t", missing="last"), Field("p", missing="last"))
    spec = FeatureSpec(fields, long=LongForm("sensor", "value"))
    assert len(found(tmp_path, [{"sensor": "t", "value": 1}] * 3, spec)) == 1


def test_without_a_time_field_the_records_times_are_shown(tmp_path: Path) -> None:
    assert found(tmp_path, [WHOLE] * 2, time_field=None) == [
        (True, "times of the records: 1970-01-01T00:00:05Z .. 1970-01-01T00:00:05Z")
    ]


def test_no_events_no_findings(tmp_path: Path) -> None:
    assert found(tmp_path, [{}]) == []


def test_times_in_a_wrong_unit_can_be_seen(tmp_path: Path) -> None:
    assert found(tmp_path, [{**WHOLE, "time": BEGIN_MS // 1000}]) == [
        (
            True,
            "event times: 1970-01-20T16:13:20Z .. 1970-01-20T16:13:20Z; are they in 'ms', the "
            "bundle's events.time_unit?",
        )
    ]
    assert time_range(np.array([1_700_000, 1_800_000])) == (
        "event times: 1970-01-01T00:28:20Z .. 1970-01-01T00:30:00Z"
    )
    assert time_range([8_640_000_000_000_000, 0]).endswith("Z .. 8640000000000000 ms")


def test_texts_show_their_times_and_nothing_that_they_lack(tmp_path: Path) -> None:
    look = EventLook(make_text_bundle(tmp_path).manifest, "in")
    texts = ["", "some text", 3]
    values = [text_event(text, BEGIN_MS + 1000 * at) for at, text in enumerate(texts)]
    look.add(Sample(0, [Taken(at, 5_000, b"k", value) for at, value in enumerate(values)]))
    assert list(look.findings()) == [
        (False, "event times: 2023-11-14T22:13:20Z .. 2023-11-14T22:13:21Z")
    ]
