"""The result of one set, as plain values: of a model, or of two."""

from dataclasses import dataclass
from functools import cached_property

from data_prep.reading.retrieval_sets import RetrievalSet
from data_prep.reading.scored_pairs import ScoredPairs
from trainer.evaluation.by_category import by_category, losing
from trainer.evaluation.compare import Scores, compare, means
from trainer.evaluation.variants import Variant


@dataclass
class SetResult:
    """The scores of one set by form of the vectors, the model's own first: of the tuned model, and of a base."""

    data: RetrievalSet | ScoredPairs
    tuned: dict[Variant, Scores]
    base: dict[Variant, Scores] | None = None

    @property
    def unit(self) -> str:
        """The things that the metrics are means over, or that are correlated."""
        return "queries" if isinstance(self.data, RetrievalSet) else "pairs"

    @property
    def count(self) -> int:
        """Queries, or pairs."""
        return len(next(iter(self.tuned.values())))

    @cached_property
    def rows(self) -> list[tuple[Variant, dict]]:
        """Every form of the vectors with its `metrics`, and where the base has it its `comparison`."""
        rows = []
        for number, (variant, scores) in enumerate(self.tuned.items()):
            row = {"metrics": means(scores)}
            if self.base:  # its own vectors may have another size than the tuned model's
                before = self.base.get(variant) if number else next(iter(self.base.values()))
                row |= {"comparison": compare(before, scores)} if before else {}
            rows.append((variant, row))
        return rows

    @cached_property
    def by(self) -> dict | None:
        """The model's own vectors by category, see by_category; None without categories."""
        if self.data.categories is None:
            return None
        base = next(iter(self.base.values())) if self.base else None
        return by_category(self.data.categories, next(iter(self.tuned.values())), base)

    @property
    def losses(self) -> list[str]:
        """A line per category that loses while the average gains."""
        return losing(self.by, self.rows[0][1]["comparison"]) if self.by and self.base else []

    def to_json(self) -> dict:
        """Returns the set's numbers; those of the model's own vectors stand first, by themselves."""
        documents = {"documents": len(self.data.doc_ids)} if isinstance(self.data, RetrievalSet) else {}
        values = {self.unit: self.count} | documents | self.rows[0][1]
        values |= {"notes": self.data.notes} if self.data.notes else {}
        if isinstance(self.data, RetrievalSet) and self.data.ignore_identical_ids:
            values["ignored_identical_ids"] = len(self.data.ignored_documents())
        if len(self.rows) > 1:
            values["variants"] = [
                {"size": form.size, "vectors": form.vectors, "rescored": form.rescored} | row for form, row in self.rows
            ]
        return values | ({"by": self.by | {"losing": self.losses}} if self.by else {})
