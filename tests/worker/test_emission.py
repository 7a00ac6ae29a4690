"""Section [emit]: the rule by itself, against a plain model, and what its settings may not say."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyed_bundle import keyed_outputs, make_keyed_bundle
from numpy.typing import NDArray
from tiny_bundle import make_tiny_bundle

from keyfold.export.events import OutputSpec
from keyfold.export.states import cold
from keyfold.worker.config import Config, SettingsError, read_config
from keyfold.worker.emission import ALERT, OUTPUT, Emission, identity
from keyfold.worker.emit_settings import Emit
from keyfold.worker.first_day.init_text import Names, settings_text
from keyfold.worker.verify.seams import Other, Seams

ONE = OutputSpec("regression", ("rul",))
LABELS = OutputSpec("classification", ("idle", "run", "burnt"))
LEAST = ["kafka.brokers=h:1", "kafka.input=in", "kafka.output=out", "worker.bundle=b"]


def read(*flags: str) -> Config:
    return read_config(None, [*LEAST, *flags], {})


def ruled(emit: Emit, outputs: OutputSpec = ONE) -> Emission:
    rule = Emission.of(emit, outputs)
    assert rule is not None
    return rule


def plain(emit: Emit, values: list[float]) -> list[int]:
    """Return what becomes of one key's events, told in the simplest way."""
    held: list[bool] = []
    last: float | None = None
    verdicts = []
    for value in values:
        above = emit.above is not None and value > emit.above
        held.append(above or (emit.below is not None and value < emit.below))
        often = sum(held[-emit.n :]) >= emit.k
        changed = last is None or abs(value - last) >= (emit.step or 0)
        output = {"all": True, "when": often, "on_change": changed}[emit.what]
        last = value if changed else last
        verdicts.append(OUTPUT * output + ALERT * (bool(emit.alert_topic) and often))
    return verdicts


@st.composite
def emits(draw: st.DrawFn) -> Emit:
    what: Any
    what, alert = draw(
        st.sampled_from([("when", ""), ("on_change", ""), ("on_change", "a"), ("all", "a")])
    )
    step = draw(st.sampled_from([0.5, 1.0, 2.0])) if what == "on_change" else None
    if what != "when" and not alert:
        return Emit(what, step=step)
    n = draw(st.sampled_from([1, 2, 3, 5, 63, 64]))
    above, below = draw(st.sampled_from([(2.0, None), (None, -1.0), (1.5, -1.0)]))
    k = draw(st.integers(1, n))
    return Emit(what, "", above, below, k=k, n=n, step=step, alert_topic=alert)


def run(rule: Emission, rows: list[list[float]], cuts: list[int]) -> list[list[int]]:
    """Run keys' values through the rule in calls that end at `cuts`; lengths differ."""
    states: dict[str, NDArray[Any]] = cold(rule.states, len(rows))
    verdicts: list[list[int]] = [[] for _ in rows]
    for begin, end in zip([0, *cuts], [*cuts, 10**6], strict=True):
        parts = [row[begin:end] for row in rows]
        some = [i for i, part in enumerate(parts) if part]
        if not some:
            continue
        lengths = np.array([len(parts[i]) for i in some])
        y = np.full((len(some), lengths.max(), 1), np.nan, np.float32)  # beyond: anything
        for place, i in enumerate(some):
            y[place, : len(parts[i]), 0] = parts[i]
        before = {name: values[some] for name, values in states.items()}
        given_, after = rule.run(y, None, lengths, before)
        for name, values in after.items():
            states[name][some] = values
        for place, i in enumerate(some):
            verdicts[i] += given_[place, : lengths[place]].tolist()
            assert not given_[place, lengths[place] :].any()
    return verdicts


VALUES = st.lists(st.integers(-6, 6).map(lambda n: n / 2), max_size=80)


@given(emits(), st.lists(VALUES, min_size=1, max_size=4), st.sets(st.integers(1, 70), max_size=5))
def test_the_rule_is_the_plain_one_however_events_are_grouped(
    emit: Emit, rows: list[list[float]], cuts: set[int]
) -> None:
    assert run(ruled(emit), rows, sorted(cuts)) == [plain(emit, row) for row in rows]


def verdicts_of(rule: Emission, y: Any, scores: Any = None) -> list[int]:
    """Judge one key's events, all in one call."""
    y = np.array([y], np.float32)
    scores = None if scores is None else np.array([scores], np.float32)
    judged, _ = rule.run(y, scores, np.array([y.shape[1]]), cold(rule.states, 1))
    return [int(one) for one in judged[0]]


def test_a_label_is_emitted_when_it_changes() -> None:
    y = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.7, 0.2, 0.1]]
    assert verdicts_of(ruled(Emit("on_change"), LABELS), y) == [1, 0, 1, 1]
    assert verdicts_of(ruled(Emit("when", equals="run"), LABELS), y) == [0, 0, 1, 0]
    by_number = ruled(Emit("when", "probabilities.1", above=0.35), LABELS)
    assert verdicts_of(by_number, y) == [0, 1, 1, 0]


def test_the_largest_probabilities_are_looked_at_by_rank() -> None:
    top = OutputSpec("classification", LABELS.names, top=2)
    y = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1]]
    assert verdicts_of(ruled(Emit("when", "top.0.probability", above=0.55), top), y) == [1, 0, 1]
    assert verdicts_of(ruled(Emit("when", "top.1.probability", above=0.35), top), y) == [0, 1, 0]
    expected = r"emit.field: expected one of label, top.0.probability, top.1.probability, got 'pro"
    with pytest.raises(SettingsError, match=expected):
        Emission.of(Emit("when", "probabilities.1", above=0.5), top)


def test_a_flag_and_a_score_that_is_null_are_understood() -> None:
    outputs, nan = keyed_outputs(quantiles=()), float("nan")
    y = np.zeros((5, len(outputs.names)))
    scores = [[nan, nan], [2.0, 0], [3.0, 1], [2.6, 0], [nan, nan]]
    assert verdicts_of(ruled(Emit("when"), outputs), y, scores) == [0, 0, 1, 1, 0]
    assert verdicts_of(ruled(Emit("on_change"), outputs), y, scores) == [1, 0, 1, 0, 1]
    off = ruled(Emit("when", equals=False), outputs)
    assert verdicts_of(off, y, scores) == [1, 1, 0, 0, 1]
    low = ruled(Emit("when", "anomaly.score", below=2.5), outputs)
    assert verdicts_of(low, y, scores) == [0, 1, 0, 0, 0]
    step = ruled(Emit("on_change", "anomaly.score", step=0.5), outputs)
    assert verdicts_of(step, y, scores) == [1, 1, 1, 0, 1]


def test_forecasts_are_named_by_field_horizon_and_quantile() -> None:
    outputs = keyed_outputs(quantiles=(0.1, 0.5))
    y = np.zeros((2, len(outputs.names)))
    y[1, outputs.names.index("rpm+3@0.1")] = 1
    rule = ruled(Emit("when", "forecast.rpm.3.0.1", above=0.5), outputs)
    assert verdicts_of(rule, y, np.zeros((2, 2))) == [0, 1]


def test_nothing_is_kept_where_nothing_is_remembered() -> None:
    assert Emission.of(Emit(), ONE) is None
    assert Emission.of(Emit(n=1), ONE) is None
    assert ruled(Emit("when", above=1.0)).states == ()
    assert [s.input for s in ruled(Emit("when", above=1.0, k=2, n=3)).states] == ["emit.held"]
    both = Emit("on_change", above=1.0, n=2, step=1.0, alert_topic="a")
    assert [s.input for s in ruled(both).states] == ["emit.held", "emit.last"]


def test_whose_states_they_are_says_the_rule_only_where_it_remembers(tmp_path: Path) -> None:
    bundle = make_tiny_bundle(tmp_path)
    name = bundle.manifest.outputs.names[0]
    assert identity(bundle, Emit()) == bundle.id
    assert identity(bundle, Emit("when", name, above=1.0)) == bundle.id
    change = Emit("on_change", name, step=1.0)
    often = Emit("when", name, above=1.0, k=2, n=3)
    rules = [change, replace(change, step=2.0), often, replace(often, above=2.0),
             replace(often, k=1), replace(often, n=4), replace(often, below=0.0)]  # fmt: skip
    found = {identity(bundle, emit) for emit in rules}
    assert len(found) == len(rules)
    assert all(one.startswith(f"{bundle.id}+") and len(one) == len(bundle.id) + 9 for one in found)
    # Where alerts go changes nothing of what is remembered.
    told = replace(often, what="all", alert_topic="a")
    assert identity(bundle, told) == identity(bundle, replace(told, alert_topic="b"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["what=sometimes"], "emit.what: expected one of 'all', 'on_change', 'when'"),
        (["above=1"], "emit.above: expected emit.what = 'when' or emit.alert_topic, got what"),
        (["what=on_change", "equals=run"], "emit.equals: expected emit.what = 'when' or"),
        (["what=when", "above=1", "below=2"], "emit.below: expected at most emit.above (1), got 2"),
        (["what=when", "above=1", "equals=a"], "emit.equals: expected this, or emit.above and"),
        (["what=when", "above=inf"], "emit.above: expected a finite number, got inf"),
        (["what=when", "n=65"], "emit.n: expected 1 to 64, got 65"),
        (["what=when", "n=3", "k=4"], "emit.k: expected 1 to emit.n (3), got 4"),
        (["what=when", "n=3", "k=0"], "emit.k: expected 1 to emit.n (3), got 0"),
        (["n=3"], "emit.n: expected emit.what = 'when' or emit.alert_topic, got neither"),
        (["what=when", "step=1"], "emit.step: expected emit.what = 'on_change', got 'when'"),
        (["what=on_change", "step=0"], "emit.step: expected a number above 0, got 0.0"),
        (["field=rul"], "emit.field: expected emit.what = on_change or when, or emit.alert_topic"),
        (["what=when", "alert_topic=a"], "emit.alert_topic: expected emit.what = all or on_change"),
        (["alert_topic=out"], "emit.alert_topic: expected a topic of its own, got 'out'"),
        (["alert_topic=in.rejects"], "emit.alert_topic: expected a topic of its own"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(
    flags: list[str], said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        read(*(f"emit.{flag}" for flag in flags))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("emit", "outputs", "said"),
    [
        (Emit("when", "ttf", above=1.0), ONE, "emit.field: expected one of rul, got 'ttf'"),
        (Emit("when", above=1.0), OutputSpec("regression", ("a", "b")),
         "emit.field: expected one of a, b, got none, and several could be meant"),
        (Emit("when"), ONE, "emit.above or emit.below: expected a number, got none: emit.field "
         "'rul' is a number"),
        (Emit("when", equals="x"), ONE, "emit.equals: expected emit.above or emit.below"),
        (Emit("on_change"), ONE, "emit.step: expected the least difference that counts as a"),
        (Emit("on_change", step=1.0), LABELS, "emit.step: expected none: emit.field 'label' is a"),
        (Emit("when", above=1.0), LABELS, "emit.above: expected none: emit.field 'label' is a "),
        (Emit("when"), LABELS, "emit.equals: expected one of idle, run, burnt, got none"),
        (Emit("when", equals="off"), LABELS, "emit.equals: expected one of idle, run, burnt, got "),
        (Emit("when", equals="yes"), keyed_outputs(), "emit.equals: expected one of true, false"),
        (Emit("when", "forecast.temp.2", above=1.0), keyed_outputs(),
         "emit.field: expected one of anomaly.flag, anomaly.score, forecast.temp.1.0.1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_the_bundle_are_refused_by_name(
    emit: Emit, outputs: OutputSpec, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Emission.of(emit, outputs)
    assert str(caught.value).startswith(said)


def test_a_flag_may_be_named_as_toml_does(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text(
        '[kafka]\nbrokers = "h:1"\ninput = "i"\noutput = "o"\n[worker]\nbundle = "b"\n'
        '[emit]\nwhat = "when"\nequals = false\nk = 2\nn = 3\n'
    )
    assert read_config(file, (), {}).emit == Emit("when", equals="false", k=2, n=3)


def test_the_rule_is_said_in_words() -> None:
    assert ruled(Emit("when", above=3.0, below=1.0, k=2, n=3)).said == (
        "a prediction is emitted when rul is above 3 or is below 1 at 2 of the key's last 3 events"
    )
    assert ruled(Emit("on_change", above=3.0, step=0.5, alert_topic="a")).said == (
        "a prediction is emitted when rul changes by 0.5 or more; it is an alert, to a too, when "
        "rul is above 3"
    )


def test_another_group_with_a_rule_of_its_own_owes_nothing_that_is_known_here() -> None:
    others = {"old": Other(0, 50, "b+0123abcd"), "plain": Other(0, 50, "b")}
    seams = Seams("new", "old", ((10, "plain"), (20, "new")), others=others)
    assert [seams.has_rule(offset) for offset in (5, 15, 25)] == [True, False, False]
    # Behind the + stands the rule: the predictions are those of bundle b.
    assert not seams.foreign(5, "b")
    assert seams.foreign(5, "c")


@pytest.mark.parametrize("kind", ["number", "several", "label", "flag"])
def test_what_init_writes_fits_the_bundle_once_the_marks_are_gone(
    tmp_path: Path, kind: str
) -> None:
    made = {
        "number": lambda: make_tiny_bundle(tmp_path),
        "several": lambda: make_tiny_bundle(tmp_path, outputs=OutputSpec("regression", ("a", "b"))),
        "label": lambda: make_tiny_bundle(tmp_path, kind="classification"),
        "flag": lambda: make_keyed_bundle(tmp_path),
    }
    manifest = made[kind]().manifest
    names = Names(tmp_path, "h:1", "in", "out", "g", "redis://h")
    text = settings_text("worker.toml", names, manifest, [], [])
    assert max(map(len, text[text.index("[emit]") :].splitlines())) <= 84
    file = tmp_path / "worker.toml"
    file.write_text(re.sub(r"^#(?=\w+ = )", "", text[text.index("[emit]") :], flags=re.MULTILINE))
    emit = read_config(file, LEAST, {}).emit
    rule = Emission.of(emit, manifest.outputs)
    assert rule is not None
    assert len(rule.states) == 2
