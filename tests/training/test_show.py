"""What is odd about a log is said before anything is learned from it."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from keyfold.export.events import EventSpec
from keyfold.export.features import FeatureSpec
from keyfold.training.data import EventLog

pytest.importorskip("keras")
from keyfold.training import show

pytestmark = pytest.mark.tensorflow
LOG = EventLog(EventSpec(), FeatureSpec.numbers("a"), None, (), "", 3, 0, ())


def said(log: EventLog) -> str:
    console = Console(file=io.StringIO(), record=True, width=80)
    show.log(log, console)
    return console.export_text()


def test_a_log_without_oddities_is_one_line() -> None:
    assert said(LOG) == "  read: 3 records, 0 rejects\n"


def test_sessions_are_counted_with_how_many_events_they_have() -> None:
    console = Console(file=io.StringIO(), record=True, width=80)
    show.sessions([6] * 50 + [2] * 46, console)
    show.sessions([1, 2], console)
    assert console.export_text() == (
        "  sessions: 96 (median 6 events)\n  sessions: 2 (median 1.5 events)\n"
    )


def test_rows_of_a_doubled_hour_are_counted_and_the_zone_is_named() -> None:
    log = replace(LOG, events=EventSpec(time_zone="Europe/Berlin"), doubled=3)
    assert "warning: 3 rows are in an hour that Europe/Berlin has twice: kept" in said(log)


def test_keys_without_a_row_in_the_static_table_are_counted() -> None:
    text = said(replace(LOG, unknown=("m2", "m3")))
    assert "  warning: 2 keys have no row in data.static, such as 'm2'\n" in text
