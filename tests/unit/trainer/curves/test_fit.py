"""The curve against closed forms, and its forecast against planted curves with planted noise."""

import math

import numpy as np
import pytest

from trainer.curves.fit import EXPONENTS, Points, fit

SIZES = np.array([90.0, 220.0, 450.0, 900.0])
QUERIES = 120


def planted(curve, sizes=SIZES, seeds=2, seed=0, shift=0.004, spread=0.1) -> tuple[Points, np.random.Generator]:
    """Gains on a curve. shift: noise of a run, common to its queries; spread: of each query in each run."""
    rng = np.random.default_rng(seed)
    means = np.array([curve(n) for n in sizes])[None, :, None]
    noise = rng.normal(0, shift, (seeds, len(sizes), 1)) + rng.normal(0, spread, (seeds, len(sizes), QUERIES))
    return Points(np.tile(sizes, (seeds, 1)), means + noise, 0.4), rng


@pytest.mark.parametrize("c", [-1.0, -0.5, -0.25, 0.5, 1.0, 2.0])
def test_a_power_law_is_found_again(c):
    a, b = 0.2, 0.9 * 90**c * (1 if c > 0 else -0.1)
    gains = a - b * SIZES**-c
    curve = fit(SIZES, np.array([gains]))
    assert math.isclose(curve.exponent[0], c, abs_tol=1e-6)
    for n in (100.0, 3000.0):
        assert math.isclose(curve.at(n)[0], a - b * n**-c, rel_tol=1e-6, abs_tol=1e-9)


def test_growth_by_the_logarithm_is_found_again():
    curve = fit(SIZES, np.array([0.03 * np.log(SIZES / 40)]))
    assert abs(curve.exponent[0]) < 1e-6 and math.isclose(curve.at(4000.0)[0], 0.03 * math.log(100), rel_tol=1e-6)


def test_least_squares_equal_numpys_for_a_fixed_exponent():
    gains = np.random.default_rng(0).normal(size=(5, 4))
    curve = fit(SIZES, gains, np.zeros(5))
    for row, values in enumerate(gains):
        slope, level = np.polyfit(np.log(SIZES), values, 1)
        assert math.isclose(curve.at(1234.0)[row], level + slope * math.log(1234), abs_tol=1e-9)


def test_two_sizes_are_met_and_the_forecast_covers_all_forms():
    sizes = SIZES[:2]
    points, _ = planted(lambda n: 0.05 * math.log(n / 50), sizes, seeds=1, shift=0, spread=0)
    assert np.allclose(points.curve.at(90.0), 0.05 * math.log(90 / 50))
    forecast = points.forecast(680)
    change = 0.05 * math.log(220 / 90)

    def grown(c: float) -> float:
        return change * (220**-c - 900**-c) / (90**-c - 220**-c)

    assert math.isclose(forecast.low, grown(2.0), rel_tol=0.1) and math.isclose(forecast.high, grown(-1.0), rel_tol=0.1)
    assert forecast.low < forecast.expected < forecast.high and not forecast.spans_zero
    assert set(np.round(points.replicates.exponent, 6)) == set(np.round(EXPONENTS, 6))


CURVES = {
    "log": lambda n: 0.05 * math.log(n / 50),
    "power": lambda n: 0.3 - 2 * n**-0.5,
    "hyperbola": lambda n: 0.2 * n / (n + 300),
}


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("sizes", [2, 4])
@pytest.mark.parametrize("name", CURVES)
def test_the_interval_holds_what_a_run_on_a_planted_curve_gives(name, sizes, seeds):
    curve, held = CURVES[name], 0
    for seed in range(10):
        points, rng = planted(curve, SIZES[:sizes], seeds, seed)
        now, more = float(points.sizes[-1]), 900
        forecast = points.forecast(more)
        given = curve(now + more) - curve(now) + rng.normal(0, 0.004)
        held += forecast.low <= given <= forecast.high
    assert held >= 8


def test_the_advice_depends_on_the_interval():
    flat, _ = planted(lambda n: 0.1)
    steep, _ = planted(lambda n: 0.1 * math.log(n / 50), shift=0.001, spread=0.02)
    falling, _ = planted(lambda n: 0.2 - 0.1 * math.log(n / 50), shift=0.001, spread=0.02)
    assert flat.forecast(900).spans_zero
    assert steep.forecast(900).low > 0 > falling.forecast(900).high


def test_the_noise_of_a_run_is_that_which_was_planted():
    together = np.mean([planted(lambda n: 0.1, seed=s, shift=0.02, spread=0.01)[0].run_noise for s in range(20)])
    alone = np.mean([planted(lambda n: 0.1, seeds=1, seed=s, shift=0, spread=0.2)[0].run_noise for s in range(20)])
    assert 0.8 * 0.02 < together < 1.3 * 0.02
    assert math.isclose(alone, 0.2 / math.sqrt(QUERIES), rel_tol=0.1)


def test_more_noise_widens_the_interval():
    def width(**more) -> float:
        forecasts = [planted(CURVES["power"], seed=seed, **more)[0].forecast(900) for seed in range(5)]
        return sum(one.high - one.low for one in forecasts)

    assert width(shift=0.02, spread=0.02) > 2 * width(shift=0.002, spread=0.02)
    assert width(shift=0, spread=0.3) > 2 * width(shift=0, spread=0.03)


def test_gains_stay_within_what_a_metric_can_be():
    points, _ = planted(lambda n: 0.3 * math.log(n / 89), shift=0, spread=0.01)  # above 1 with all pairs
    assert points.interval(90000.0)[2] <= 0.6 and points.forecast(90000).expected <= 0.6
