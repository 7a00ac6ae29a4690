"""The feature spec: which fields become inputs, and which values cannot.

Holds the reasons that end up in dead letters word by word, because operators search for them.
Needs nothing but numpy.
"""

from __future__ import annotations

import numpy as np
import pytest

from keyfold.export.errors import SpecError
from keyfold.export.features import FLOAT32_MAX, FeatureSpec, encode

SPEC = FeatureSpec(("a", "b"))


def test_spec_survives_its_manifest_form() -> None:
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC


def test_spec_without_fields_is_refused() -> None:
    with pytest.raises(SpecError, match="expected at least one field"):
        FeatureSpec(())


def test_repeated_field_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="named more than once: b"):
        FeatureSpec(("a", "b", "b"))


def test_unknown_kind_is_refused_by_field() -> None:
    data = {"fields": [{"name": "a", "kind": "number"}, {"name": "b", "kind": "text"}]}
    with pytest.raises(SpecError, match=r"field 'b': expected kind 'number', got 'text'"):
        FeatureSpec.from_json(data)


def test_finite_rows_are_rounded_to_float32_once() -> None:
    values = np.array([[0.1, -2.5], [FLOAT32_MAX, -FLOAT32_MAX]])
    x, rejects = encode(SPEC, values)
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
    x, rejects = encode(SPEC, np.array([[1.0, 2.0], row, [3.0, 4.0]]))
    assert rejects == {1: reason}
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x[[0, 2]], [[1.0, 2.0], [3.0, 4.0]])


def test_value_just_above_the_largest_float32_never_becomes_infinity() -> None:
    above = np.nextafter(FLOAT32_MAX, np.inf)
    x, rejects = encode(SPEC, np.array([[above, 0.0]]))
    assert rejects == {0: "field 'a' overflows float32"}
    assert np.isfinite(x).all()


def test_no_rows_are_no_rows() -> None:
    x, rejects = encode(SPEC, np.empty((0, 2)))
    assert x.shape == (0, 2)
    assert rejects == {}
