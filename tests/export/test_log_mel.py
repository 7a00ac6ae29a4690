"""Log mel powers of raw samples: what numpy's own Fourier transform says, and louder or not."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("keras")

from keras_marks import KERAS

from keyfold.export.layers import RandomGain
from keyfold.export.log_mel import CENTRE, FLOOR, SPREAD, LogMel, mel_filters

pytestmark = KERAS


def test_powers_are_those_of_a_fourier_transform() -> None:
    draw = np.random.default_rng(1)
    x = draw.normal(size=(2, 3, 200)).astype(np.float32)
    got = np.asarray(LogMel(8000, 128, 36, 20)(x))
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(128) + 0.5) / 128)
    pieces = np.stack([x[..., at : at + 128] for at in (0, 36, 72)], axis=2) * taper
    power = np.abs(np.fft.rfft(pieces)) ** 2 / np.sum(taper**2)
    want = (np.log(power @ mel_filters(8000, 128, 20) + FLOOR) - CENTRE) / SPREAD
    assert got.shape == (2, 3, 3, 20)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_white_noise_of_deviation_1_has_power_1_in_every_band() -> None:
    x = np.random.default_rng(2).normal(size=(1, 4000, 128)).astype(np.float32)
    bands = np.asarray(LogMel(8000, 128, 128, 20)(x))[0, :, 0]
    power = np.exp(bands * SPREAD + CENTRE).mean(axis=0)
    np.testing.assert_allclose(power[1:-1], 1.0, atol=0.15)


def test_a_tone_is_in_the_band_around_it() -> None:
    time = np.arange(256) / 8000
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4000 / 700), 22) / 2595) - 1)
    for hertz in (300.0, 1000.0, 3000.0):
        x = np.sin(2 * np.pi * hertz * time, dtype=np.float64).astype(np.float32)[None, None]
        best = int(np.asarray(LogMel(8000, 256, 256, 20)(x))[0, 0, 0].argmax())
        assert edges[best] < hertz < edges[best + 2]


@pytest.mark.parametrize(("size", "bands"), [(128, 20), (32, 40), (200, 80)])
def test_every_filter_lets_something_through(size: int, bands: int) -> None:
    np.testing.assert_allclose(mel_filters(8000, size, bands).sum(axis=0), 1.0)


def test_silence_is_finite() -> None:
    assert np.isfinite(np.asarray(LogMel(8000, 128, 36, 20)(np.zeros((1, 2, 200), "f4")))).all()


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="LogMel: expected at least 128 samples, got 100"):
        LogMel(8000, 128, 36, 20)(np.zeros((1, 2, 100), "f4"))


def test_a_random_gain_is_one_factor_a_row_and_none_when_served() -> None:
    layer = RandomGain(0.5)
    x = np.random.default_rng(3).normal(size=(64, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(layer(x)), x)
    factors = np.asarray(layer(x, training=True)) / x
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], x.shape), rtol=1e-5)
    logs = np.log(factors[:, 0, 0])
    assert 0.3 < logs.std() < 0.7
    assert abs(logs.mean()) < 0.2
