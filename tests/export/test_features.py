"""The feature spec: which fields become inputs, and which values cannot.

Holds the reasons that end up in dead letters word by word, because operators search for them.
Needs nothing but numpy.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from keyfold.export.errors import SpecError
from keyfold.export.features import FLOAT32_MAX, FeatureSpec, Field, LongForm, encode

SPEC = FeatureSpec.numbers("a", "b")


def test_spec_survives_its_manifest_form() -> None:
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC


def test_spec_without_fields_is_refused() -> None:
    with pytest.raises(SpecError, match="expected at least one field"):
        FeatureSpec(())


def test_repeated_field_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="named more than once: b"):
        FeatureSpec.numbers("a", "b", "b")


def test_unknown_kind_is_refused_by_field() -> None:
    data = {"fields": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "text"}]}
    with pytest.raises(SpecError, match=r"field 'b': expected kind 'number', .*, got 'text'"):
        FeatureSpec.from_json(data)


def test_finite_rows_are_rounded_to_float32_once() -> None:
    values = np.array([[0.1, -2.5], [FLOAT32_MAX, -FLOAT32_MAX]])
    x, rejects = encode(SPEC.columns, values)
    assert x.dtype == np.float32
    assert rejects == {}
    np.testing.assert_array_equal(x, values.astype(np.float32))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([np.nan, 1.0], "field 'a' is not finite"),
        ([1.0, np.inf], "field 'b' is not finite"),
        ([1.0, -np.inf], "field 'b' is not finite"),
        ([1e39, 1.0], "field 'a' overflows float32"),
        ([1.0, -3.5e38], "field 'b' overflows float32"),
        ([1e39, np.nan], "field 'a' overflows float32"),
    ],
)
def test_unusable_value_is_a_reject_naming_the_field(row: list[float], reason: str) -> None:
    x, rejects = encode(SPEC.columns, np.array([[1.0, 2.0], row, [3.0, 4.0]]))
    assert rejects == {1: reason}
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x[[0, 2]], [[1.0, 2.0], [3.0, 4.0]])


def test_value_just_above_the_largest_float32_never_becomes_infinity() -> None:
    above = np.nextafter(FLOAT32_MAX, np.inf)
    x, rejects = encode(SPEC.columns, np.array([[above, 0.0]]))
    assert rejects == {0: "field 'a' overflows float32"}
    assert np.isfinite(x).all()


def test_no_rows_are_no_rows() -> None:
    x, rejects = encode(SPEC.columns, np.empty((0, 2)))
    assert x.shape == (0, 2)
    assert rejects == {}


# -- fields of every kind --------------------------------------------------------------------------

MESSY = FeatureSpec(
    (
        Field("a.b", missing="last", fill=2.5, standardise=True),
        Field("on", "boolean", missing="mask", fill=0.25),
        Field("mode", "category", ("x", "y"), missing="last"),
    ),
    since_last=True,
    long=LongForm("sensor", "value"),
)


def test_plain_numbers_have_the_manifest_form_of_version_1_0() -> None:
    assert SPEC.is_plain
    assert SPEC.to_json() == {
        "fields": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number"}]
    }


def test_spec_of_every_kind_survives_its_manifest_form() -> None:
    assert not MESSY.is_plain
    assert FeatureSpec.from_json(json.loads(json.dumps(MESSY.to_json()))) == MESSY


@pytest.mark.parametrize(
    "field",
    [
        Field("a", missing="mask"),
        Field("a", standardise=True),
        Field("a", "boolean"),
        Field("a", "category", ("x",)),
    ],
)
def test_anything_else_than_a_required_number_is_not_plain(field: Field) -> None:
    assert not FeatureSpec((field,)).is_plain
    assert not FeatureSpec((Field("a"),), since_last=True).is_plain


def test_columns_are_named_in_their_order() -> None:
    assert MESSY.columns == (
        "a.b", "a.b?", "on", "on?", "mode=x", "mode=y", "mode?", "seconds since last"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"missing": "drop"}, "expected missing 'error', 'mask' or 'last', got 'drop'"),
        ({"kind": "category"}, "expected values for a category, and for nothing else"),
        ({"values": ("x",)}, "expected values for a category, and for nothing else"),
        ({"kind": "category", "values": ("x", "x")}, "expected distinct values"),
        ({"kind": "category", "values": (1,)}, "expected values as text"),
        ({"kind": "category", "values": ("x",), "fill": 1.0}, "none for a category"),
        ({"kind": "boolean", "standardise": True}, "expected kind 'number' to standardise"),
        ({"fill": float("nan")}, "expected fill as a finite number"),
        ({"fill": 1e39}, "expected fill as a finite number"),
    ],
)
def test_field_that_contradicts_itself_is_refused_by_name(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError, match=rf"features: field 'a': .*{message}"):
        Field("a", **arguments)


def test_fields_whose_columns_would_be_named_alike_are_refused() -> None:
    fields = (Field("a", "category", ("x",)), Field("a=x"))
    with pytest.raises(SpecError, match="features: columns named more than once: a=x"):
        FeatureSpec(fields)


def test_what_this_version_does_not_know_of_a_field_is_refused() -> None:
    data = {"fields": [{"name": "a", "kind": "number", "lag": 3}]}
    with pytest.raises(SpecError, match=r"field 'a': unknown \['lag'\]"):
        FeatureSpec.from_json(data)
