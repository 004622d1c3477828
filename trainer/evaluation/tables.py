"""The tables of an evaluation."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from trainer.evaluation.result import SetResult

SHOWN_CATEGORIES = 30
NONE = "–"


def show(results: Sequence[SetResult], head: Sequence[str]) -> None:
    """Prints all sets as one table below the lines of `head`, then a table per set of its categories."""
    console = Console()
    for line in head:
        console.print(Text(line), soft_wrap=True)
    for table in (_table(results), *(_categories(result) for result in results if result.by)):
        whole = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        Console(width=max(whole, console.width)).print(table)  # a number that is cut says nothing
    for result in results:
        for line in result.losses:
            console.print(Text(line), soft_wrap=True)


def title_of(result: SetResult) -> Text:
    """Names a set and its size."""
    documents = f", {len(result.data.doc_ids)} documents" if result.unit == "queries" else ""
    return Text(f"{result.data.name}: {result.count} {result.unit}{documents}")


def _table(results: Sequence[SetResult]) -> Table:
    if results[0].base is not None:
        return _compared(results)
    if len(results) > 1 or len(results[0].rows) > 1:
        return _measured(results)
    table = Table("metric", "value", title=title_of(results[0]))
    for name, value in results[0].rows[0][1]["metrics"].items():
        table.add_row(name, f"{value:.4f}")
    return table


def _measured(results: Sequence[SetResult]) -> Table:
    """A row per set and form of the vectors, a column per metric."""
    names = [*dict.fromkeys(name for result in results for name in result.rows[0][1]["metrics"])]
    sets, forms = _extra_columns(results)
    title = None if sets else title_of(results[0])
    table = Table(*(["set"] * sets), *(["vectors"] * forms), *names, title=title)
    for result in results:
        for number, (form, row) in enumerate(result.rows):
            cells = [_of_set(result) if number == 0 else ""] * sets + [form.label] * forms
            values = [row["metrics"].get(name) for name in names]
            table.add_row(*cells, *(NONE if value is None else f"{value:.4f}" for value in values))
        table.add_section()
    return table


def _compared(results: Sequence[SetResult]) -> Table:
    """A row per set, form of the vectors and metric: base, tuned, difference and its interval."""
    sets, forms = _extra_columns(results)
    heads = [*(["set"] * sets), *(["vectors"] * forms), "metric", "base", "tuned", "difference", "95 % interval"]
    table = Table(*heads, title=None if sets else title_of(results[0]))
    for result in results:
        for number, (form, row) in enumerate(result.rows):
            for line, (name, value) in enumerate(row["metrics"].items()):
                cells = [_of_set(result) if number == line == 0 else ""] * sets
                cells += [form.label if line == 0 else ""] * forms
                compared = row.get("comparison", {}).get(name)
                table.add_row(*cells, name, *(_cells(compared) if compared else (NONE, f"{value:.4f}", NONE, NONE)))
            table.add_section()
    return table


def _extra_columns(results: Sequence[SetResult]) -> tuple[bool, bool]:
    """Returns True for a column of the set, and for one of the form of the vectors."""
    return len(results) > 1, any(len(result.rows) > 1 for result in results)


def _of_set(result: SetResult) -> Text:
    return Text(f"{result.data.name} ({result.count:,} {result.unit})")


def _cells(row: dict) -> tuple[str, str, str, str]:
    interval = row["interval_95"]
    limits = f"{interval[0]:+.4f} … {interval[1]:+.4f}" if interval else NONE
    return f"{row['base']:.4f}", f"{row['tuned']:.4f}", f"{row['difference']:+.4f}", limits


def _categories(result: SetResult) -> Table:
    """The categories of one set, the largest first, by the first metric; beside a base with intervals."""
    by, names = result.by, [*result.rows[0][1]["metrics"]]
    shown = [*by["categories"].items()][:SHOWN_CATEGORIES]
    title = f"{result.data.name} by {by['field']} of the {by['owner']}"
    title += f": {names[0]}" if result.base is not None else ""
    columns = ["base", "tuned", "difference", "95 % interval"] if result.base is not None else names
    heads = escape(by["field"]), result.unit, *columns
    table = Table(*heads, title=Text(title), caption=Text(_caption(result, len(shown))))
    for category, row in shown:
        if result.base is not None:
            cells = _cells(row["comparison"][names[0]]) if row["comparison"] else [NONE] * 4
        else:
            cells = [f"{value:.4f}" for value in row["metrics"].values()] if row["metrics"] else [NONE] * len(names)
        table.add_row(Text(category), str(row[result.unit]), *cells)
    return table


def _caption(result: SetResult, shown: int) -> str:
    """Returns what the table leaves out."""
    by, lines = result.by, []
    if more := len(by["categories"]) - shown:
        lines.append(f"{more:,} smaller categories are not shown; --json holds all")
    if by["without"]:
        lines.append(f"{by['without']:,} {result.unit} have no {by['field']}")
    return "; ".join(lines)
