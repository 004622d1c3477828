"""A query's top results on the terminal, one column per model."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.common.console import one_line
from trainer.inference.searching import Hit
from trainer.reporting.comparison import METRIC, Comparison, Query

SHOWN = {"gained": 2, "lost": 1}  # queries of a report on the terminal
TEXT = 160  # characters of a document


def show(query: str, sides: dict[str, list[Hit]], head: Sequence[str] = ()) -> None:
    """Prints a table of the hits, one column per model. head: lines above it."""
    table = Table("", *sides, title=Text(query), expand=True)
    for rank in range(max(len(hits) for hits in sides.values())):
        cells = []
        for hits in sides.values():
            hit = hits[rank] if rank < len(hits) else None
            cells.append(Text(f"cosine {hit.similarity:.3f}  {hit.id}\n{one_line(hit.text, TEXT)}" if hit else ""))
        table.add_row(str(rank + 1), *cells)
    console = Console()
    for line in head:
        console.print(Text(line), soft_wrap=True)
    console.print(table)


def show_changed(comparison: Comparison) -> None:
    """Prints the top results of the queries that gained and lost most, before and after training."""
    for kind, queries in comparison.changed.items():
        for query in queries[: SHOWN[kind]]:
            show(f"{kind}: {query.text}", _sides(query))


def _sides(query: Query) -> dict[str, list[Hit]]:
    values = {"base": f"before: {METRIC} {query.base:.3f}", "tuned": f"after: {METRIC} {query.tuned:.3f}"}
    return {
        title: [Hit("✓ relevant" if shown.right else "", shown.text, shown.similarity) for shown in query.best[side]]
        for side, title in values.items()
    }
