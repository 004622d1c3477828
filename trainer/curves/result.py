"""The measurements of a curve's runs, as points and as the JSON that page and screen show."""

from pathlib import Path

import numpy as np

from data_prep.common.errors import Failed
from data_prep.texts.tokenizer_rules import read_object
from trainer.curves.fit import EXPONENTS, REPLICATES, Forecast, Points
from trainer.curves.runs import Runs
from trainer.run_dir.queries import FOLDER, read_values, watched
from trainer.run_dir.verdict import read_verdict

DRAWN = 40  # points of the curve for the plot


def read_points(runs: Runs) -> tuple[Points, int]:
    """Returns the gains of the runs' best trained models on the queries that report, and the number of these queries.

    Raises Failed for a run without values of single queries."""
    first = runs.by_seed[0][0]
    source, _ = watched(first.config.watch.metric)
    base = read_values(first.folder, 0).get(source) or {}
    halves = read_object(first.folder / FOLDER / "halves.json")  # absent where no query chose: watch.metric train_loss
    queries = [query for query in halves.get("reporting", base) if query in base]
    gains = [[_gains(run.folder, source, base, queries) for run in of_seed] for of_seed in runs.by_seed]
    pairs = np.array([[run.pairs for run in of_seed] for of_seed in runs.by_seed], float)
    mean = float(np.mean([base[query] for query in queries]))
    return Points(pairs, np.array(gains), mean), len(queries)


def _gains(folder: Path, source: str, base: dict[str, float], queries: list[str]) -> list[float]:
    step = read_verdict(folder).get("best", {}).get("step")
    values = read_values(folder, step).get(source, {}) if step is not None else {}
    if not queries or any(query not in values for query in queries):
        raise Failed(f"{folder}: lacks values of single queries ({FOLDER}/); remove this folder and start again")
    return [values[query] - base[query] for query in queries]


def describe_curve(runs: Runs, more: list[int], price_per_pair: float | None) -> dict:
    """Returns what curve.json holds."""
    points, queries = read_points(runs)
    source, metric = watched(runs.by_seed[0][0].config.watch.metric)
    curve, largest = points.curve, points.sizes[-1]
    forecasts = [points.forecast(count, price_per_pair) for count in more]
    last = largest + max(more)
    fitted = {"reference_pairs": curve.reference, "level": curve.level[0], "slope": curve.slope[0]}
    fitted |= {"exponent": curve.exponent[0], "exponent_is_known": len(points.sizes) > 2}
    return {
        "metric": f"{source}/{metric}" if source else metric,
        "queries": queries,
        "same_queries": bool(read_verdict(runs.by_seed[0][0].folder).get("same_queries")),
        "before_training": points.base,
        "measured": [_size(runs, points, k) for k in range(len(points.sizes))],
        "run_noise": points.run_noise,
        "curve": {name: value if isinstance(value, bool) else float(value) for name, value in fitted.items()},
        "exponents": [float(EXPONENTS[0]), float(EXPONENTS[-1])],
        "replicates": REPLICATES,
        "drawn": [_drawn(points, n) for n in np.geomspace(points.sizes[0], last, DRAWN)],
        "forecasts": [_forecast(points, one) for one in forecasts],
        "runs": [str(run.folder) for run in runs.in_order()],
    }


def _size(runs: Runs, points: Points, k: int) -> dict:
    values = points.base + points.gains[:, k].mean(axis=1)
    return {
        "fraction": runs.by_seed[0][k].fraction,
        "pairs": [of_seed[k].pairs for of_seed in runs.by_seed],
        "by_seed": values.tolist(),
        "mean": float(values.mean()),
    }


def _drawn(points: Points, pairs: float) -> dict:
    value, low, high = points.interval(pairs)
    return {"pairs": float(pairs), "value": points.base + value, "low": points.base + low, "high": points.base + high}


def _forecast(points: Points, one: Forecast) -> dict:
    return {
        "more_pairs": one.pairs,
        "pairs": float(points.sizes[-1]) + one.pairs,
        "from": points.base + points.interval(float(points.sizes[-1]))[0],
        "expected": one.expected,
        "interval_95": [one.low, one.high],
        "price": one.price,
        "stop": one.high < 0 or one.spans_zero,
    }


def lines(result: dict) -> list[str]:
    """Returns the result as lines for people."""
    metric = result["metric"]
    shown = [f"{metric} on {result['queries']:,} queries: {result['before_training']:.4f} before training"]
    if result["same_queries"]:
        shown.append("the queries that chose each run's model are those that report here, which flatters the models")
    for size in result["measured"]:
        pairs = "/".join(f"{count:,}" for count in dict.fromkeys(size["pairs"]))
        shown.append(f"{pairs} pairs: {size['mean']:.4f} ({', '.join(f'{value:.4f}' for value in size['by_seed'])})")
    for one in result["forecasts"]:
        low, high = one["interval_95"]
        cost = "" if one["price"] is None else f", for {one['price']:,.2f}"
        change = f"{one['expected']:+.4f} expected (95 % interval {low:+.4f} to {high:+.4f})"
        shown += [f"the next {one['more_pairs']:,} pairs: {change}{cost}", advice(one)]
        if one["stop"] and len(result["measured"]) == 2:
            shown.append(
                "two shares do not show the form of the curve: a third one (--fractions) makes the interval smaller"
            )
    return shown


def advice(one: dict) -> str:
    """Returns whether so many more pairs are worth it, as far as these runs can tell."""
    if one["interval_95"][1] < 0:
        return "stop: more such pairs are expected to make it worse"
    if one["stop"]:
        return "stop: the interval spans zero, so these runs do not show that more such pairs help"
    return "go on: the interval lies above zero"
