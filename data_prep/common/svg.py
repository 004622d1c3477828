"""Plots as SVG for a page: as wide as their container, coloured by the page's CSS variables, no script.

Every plot is WIDTH units wide, so that its letters are readable on a phone and not huge on a desktop.
"""

import math
from html import escape

WIDTH = 360
BAR = 38  # height of a horizontal bar with its line of text
MOST_POINTS = 600  # of a line: twice what a phone can show
FEW_POINTS = 60
COLOURS = 7  # --c0 … --c6 of the page; the last is grey


def bars(rows: list[tuple[str, float, str]], label: str) -> str:
    """Horizontal bars; a share of 1 spans the whole width. rows: (name, share, text at the end)."""
    parts = []
    for row, (name, share, shown) in enumerate(rows):
        y = row * BAR
        parts += [_text(0, y + 12, _cut(name, 40)), _text(WIDTH, y + 12, shown, "end")]
        parts.append(_rect(0, y + 17, WIDTH, 10, "var(--rail)"))
        if share:
            parts.append(_rect(0, y + 17, max(WIDTH * share, 1.5), 10, "var(--c0)"))
    return _svg(parts, len(rows) * BAR, label)


def histogram(counts: dict[str, int], colour: int, label: str) -> str:
    """Vertical bars over upper bounds (powers of two), with their shares. counts: {upper bound: texts}."""
    tall, base = 110, 130
    by_bits = {int(bound).bit_length(): count for bound, count in counts.items()}
    first, last = min(by_bits), max(by_bits)
    total, most = sum(counts.values()), max(counts.values())
    step = WIDTH / (last - first + 1)
    parts = [_line(0, base, WIDTH, base, "axis")]
    for bits in range(first, last + 1):
        count, bound = by_bits.get(bits, 0), 1 << (bits - 1)
        x, height = (bits - first) * step, tall * count / most
        lengths = f"{bound // 2 + 1:,} to {bound:,}" if bound > 2 else str(bound)
        title = f"{lengths}: {count:,} texts ({_percent(count, total)})"
        parts.append(_rect(x + 1.5, base - height, step - 3, height, f"var(--c{colour})", title))
        parts.append(_text(x + step / 2, base + 14, _short(bound), "mid small"))
        if 200 * count >= total:  # smaller ones would overlap
            parts.append(_text(x + step / 2, base - height - 4, _percent(count, total), "mid small"))
    return _svg(parts, base + 20, label)


def curves(series: dict[str, list[tuple[int, float]]], marks: set[int], label: str) -> str:
    """Shares (0..1) over lengths on a log2 scale, a vertical line per mark. series: {name: [(length, share)]}."""
    left, right, top, base = 42, WIDTH - 12, 12, 150
    lengths = [length for points in series.values() for length, _ in points]
    low, high = math.log2(min(lengths)), math.log2(max(lengths))
    most = max(share for points in series.values() for _, share in points)
    readable = (0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # in quarters
    full = next(share for share in readable if share >= most)

    def at(length: int, share: float) -> tuple[float, float]:
        return left + (right - left) * (math.log2(length) - low) / (high - low), base - (base - top) * share / full

    parts = []
    for share in (full * part / 4 for part in range(5)):
        _, y = at(lengths[0], share)
        parts += [_line(left, y, right, y, "grid"), _text(left - 4, y + 4, f"{100 * share:g} %", "end small")]
    for bits in range(math.ceil(low), math.floor(high) + 1):
        parts.append(_text(at(1 << bits, 0)[0], base + 15, _short(1 << bits), "mid small"))
    for mark in sorted(marks):
        x, _ = at(mark, 0)
        parts += [_line(x, top, x, base, "mark"), _text(x + 3, top + 8, f"cut at {mark:,}", "small")]
    for number, points in enumerate(series.values()):
        titles = [f"{share:.1%} are longer than {length:,}" for length, share in points]
        parts += _line_chart(number, [at(*point) for point in points], titles, digits=1, stroke=2.5, radius=3)
    return _svg(parts, base + 22, label) + _legend(enumerate(series))


def lines(series: dict[str, list[tuple[float, float]]], label: str) -> str:
    """Values over steps on linear scales; up to FEW_POINTS points are marked. series: {name: [(x, y)]}."""
    left, right, top, base = 46, WIDTH - 12, 12, 150
    values = [y for points in series.values() for _, y in points]
    last = max(x for points in series.values() for x, _ in points) or 1
    marks = _ticks(min(values), max(values))

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (right - left) * x / last, base - (base - top) * (y - marks[0]) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        _, y = at(0, mark)
        parts += [_line(left, y, right, y, "grid"), _text(left - 4, y + 4, f"{mark:g}", "end small y")]
    for mark in sorted({0, last // 2, last}):
        parts.append(_text(at(mark, marks[0])[0], base + 17, f"{mark:,}", "mid small x"))
    for number, points in enumerate(series.values()):
        drawn = _thin(points)
        titles = [f"step {x:,}: {y:.6g}" for x, y in drawn] if len(drawn) <= FEW_POINTS else []
        parts += _line_chart(number, [at(*point) for point in drawn], titles, digits=2, stroke=2, radius=2.5)
    return _svg(parts, base + 24, label) + (_legend(enumerate(series)) if len(series) > 1 else "")


def densities(series: dict[str, list[float]], edges: list[float], label: str) -> str:
    """Overlaid histograms with bins of equal width. series: {name: [share per bin]}; edges: one more than bins."""
    left, right, top, base = 8, WIDTH - 8, 8, 110
    most = max(share for shares in series.values() for share in shares) or 1.0
    width = edges[-1] - edges[0]

    def x(value: float) -> float:
        return left + (right - left) * (value - edges[0]) / width

    parts = [_line(left, base, right, base, "axis")]
    for number, (name, shares) in enumerate(series.items()):
        corners = [(edge, share) for k, share in enumerate(shares) for edge in edges[k : k + 2]]
        corners = [(edges[0], 0.0), *corners, (edges[-1], 0.0)]
        path = " ".join(f"{x(edge):.1f},{base - (base - top) * share / most:.1f}" for edge, share in corners)
        fill = f'fill="var(--c{number})" fill-opacity=".3" stroke="var(--c{number})" stroke-width="1.5"'
        parts.append(f'<polygon points="{path}" {fill}><title>{escape(name)}</title></polygon>')
    for mark in _ticks(edges[0], edges[-1]):
        if edges[0] <= mark <= edges[-1]:
            parts.append(_text(x(mark), base + 14, f"{mark:g}", "mid small"))
    return _svg(parts, base + 20, label) + _legend(enumerate(series))


def fan(
    band: list[tuple[float, float, float, float]], dots: list[tuple[float, float]], known: float, label: str
) -> str:
    """A line with its band over x on a log scale, and dots. band: (x, y, low, high); known: the x of a dashed line."""
    left, right, top, base = 46, WIDTH - 12, 12, 190
    first, last = math.log(band[0][0]), math.log(band[-1][0])
    first, last = min(first, *(math.log(x) for x, _ in dots)), max(last, *(math.log(x) for x, _ in dots))
    values = [value for point in band for value in point[1:]] + [y for _, y in dots]
    marks = _ticks(min(values), max(values))

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - first) / (last - first)
        return left + (right - left) * share, base - (base - top) * (y - marks[0]) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        _, y = at(known, mark)
        parts += [_line(left, y, right, y, "grid"), _text(left - 4, y + 4, f"{mark:g}", "end small y")]
    for x, kind in ((math.exp(first), "small x"), (known, "mid small x"), (math.exp(last), "end small x")):
        parts.append(_text(at(x, marks[0])[0], base + 15, f"{x:,.0f}", kind))
    corners = [at(x, high) for x, _, _, high in band] + [at(x, low) for x, _, low, _ in reversed(band)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    parts.append(f'<polygon points="{path}" fill="var(--c0)" fill-opacity=".2"/>')
    x, _ = at(known, marks[0])
    parts.append(_line(x, top, x, base, "mark"))
    parts += _line_chart(0, [at(x, y) for x, y, _, _ in band], [], digits=1, stroke=2, radius=0)
    for x, y in dots:
        (cx, cy), title = at(x, y), f"{x:,.0f}: {y:.4f}"
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5" fill="var(--c1)"><title>{title}</title></circle>')
    return _svg(parts, base + 22, label)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns about MOST_POINTS of the points: the lowest and the highest of every stretch, in order."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _ticks(low: float, high: float) -> list[float]:
    """Returns three to seven round numbers that enclose both values."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    rough = (high - low) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 2.5, 5, 10) if k * power >= rough * 0.9999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def stacked(rows: list[tuple[str, dict[str, int]]], grey: str, label: str) -> str:
    """Bars of full width, divided into shares. rows: (name, {part: count}). grey: the part that is drawn in grey."""
    totals: dict[str, int] = {}
    for _, counts in rows:
        for part, count in counts.items():
            totals[part] = totals.get(part, 0) + count
    rest = totals.pop(grey, 0)
    common = sorted(totals, key=lambda part: (-totals[part], part))[: COLOURS - 2]
    colour = {part: number for number, part in enumerate(common)} | {"other": COLOURS - 2, grey: COLOURS - 1}
    shown = common + ["other"] * (len(totals) > len(common)) + [grey] * (rest > 0)
    parts = []
    for row, (name, counts) in enumerate(rows):
        y, x, total = row * BAR, 0.0, sum(counts.values()) or 1
        parts.append(_text(0, y + 12, _cut(name, 46)))
        of = {part: counts.get(part, 0) for part in common}
        unknown = counts.get(grey, 0)
        of |= {"other": sum(counts.values()) - sum(of.values()) - unknown, grey: unknown}
        for part, count in of.items():
            width = WIDTH * count / total
            if count:
                title = f"{part}: {count:,} ({_percent(count, total)})"
                parts.append(_rect(x, y + 17, width, 10, f"var(--c{colour[part]})", title))
            x += width
    return _svg(parts, len(rows) * BAR, label) + _legend((colour[part], part) for part in shown)


def _line_chart(
    number: int, points: list[tuple[float, float]], titles: list[str], digits: int, stroke: float, radius: float
) -> list[str]:
    """Returns a line in colour `number`, with a circle per title."""
    colour, points_text = f"var(--c{number})", [(f"{x:.{digits}f}", f"{y:.{digits}f}") for x, y in points]
    path = " ".join(f"{x},{y}" for x, y in points_text)
    circles = [
        f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}"><title>{title}</title></circle>'
        for (x, y), title in zip(points_text, titles)
    ]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>', *circles]


def _legend(named) -> str:
    """named: (colour, name)."""
    items = "".join(f'<li><i style="background:var(--c{number})"></i>{escape(name)}</li>' for number, name in named)
    return f'<ul class="legend">{items}</ul>'


def _svg(parts: list[str], height: float, label: str) -> str:
    label = escape(label, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _rect(x: float, y: float, width: float, height: float, fill: str, title: str = "") -> str:
    title = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}">{title}</rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, content: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def _percent(count: int, total: int) -> str:
    share = 100 * count / total if total else 0
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %" if share >= 0.1 else "<0.1 %"


def _short(number: int) -> str:
    """Returns 1024 as 1k."""
    return f"{number // 1024}k" if number >= 1024 else str(number)
