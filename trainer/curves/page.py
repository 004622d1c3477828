"""The page of a curve."""

from html import escape
from pathlib import Path

from data_prep.common import svg
from data_prep.common.html_page import page, section, table, tiles
from trainer.curves.result import advice


def write_page(result: dict, folder: Path) -> str:
    """Returns the whole page."""
    metric = escape(result["metric"])
    caption = f"{metric} on {result['queries']:,} queries. Made by <code>python -m trainer.curve</code>."
    body = _tiles(result) + _plot(result) + _sizes(result) + _forecasts(result)
    return page(f"How many pairs: {folder.resolve().name}", caption, body)


def _tiles(result: dict) -> str:
    one, largest = result["forecasts"][0], result["measured"][-1]
    shown = [
        (f"{result['before_training']:.4f}", "before training", ""),
        (f"{largest['mean']:.4f}", f"with {max(largest['pairs']):,} pairs", ""),
        (f"{one['expected']:+.4f}", f"expected of {one['more_pairs']:,} more", "" if one["stop"] else "good"),
    ]
    shown += [(f"{one['price']:,.2f}", "their price", "")] if one["price"] is not None else []
    return tiles(shown)


def _plot(result: dict) -> str:
    band = [(point["pairs"], point["value"], point["low"], point["high"]) for point in result["drawn"]]
    sizes = result["measured"]
    dots = [dot for size in sizes for dot in zip(size["pairs"], size["by_seed"], strict=True)]
    plot = svg.fan(band, dots, max(sizes[-1]["pairs"]), "metric by number of pairs")
    caption = "A point per run; the curve, with its 95 % interval over queries and seeds; pairs on a log scale. "
    caption += "Nothing was measured right of the dashed line."
    if not result["curve"]["exponent_is_known"]:
        caption += " Two sizes do not determine the form of the curve, so the interval covers many."
    return section("Metric by number of pairs", caption, plot)


def _sizes(result: dict) -> str:
    rows = [
        (f"{size['fraction']:g}", " / ".join(f"{n:,}" for n in size["pairs"]), f"{size['mean']:.4f}",
         ", ".join(f"{value:.4f}" for value in size["by_seed"]))
        for size in result["measured"]
    ]  # fmt: skip
    return section("Measured", "", table(("share", "pairs", "mean", "by seed"), rows))


def _forecasts(result: dict) -> str:
    rows = []
    for one in result["forecasts"]:
        low, high = one["interval_95"]
        price = "not known" if one["price"] is None else f"{one['price']:,.2f}"
        numbers = f"{one['more_pairs']:,}", f"{one['expected']:+.4f}", f"{low:+.4f} … {high:+.4f}"
        rows.append((*numbers, price, advice(one)))
    caption = "Expected change of the metric, and the 95 % interval of one run with so many more pairs of this kind."
    return section("More pairs", caption, table(("more pairs", "expected", "95 % interval", "price", ""), rows))
