"""Facts about documents that ranks exchange for a loss: columns by name, packed and unpacked here. Torch loads late.

Each tuple travels as one int64 table, a row per document. `launch plan` takes the widths from the fields.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

NO_ROW = -1  # row_id of a hard negative, which belongs to no row as its positive


class DocumentKeys(NamedTuple):
    """Identities of n documents, and the row that each belongs to; see masks.duplicate_mask."""

    text: "Tensor"  # (n,) int64 key of the text
    document_id: "Tensor"  # (n,) int64 key of the document id, -1 without one
    query: "Tensor"  # (n,) int64 key of the query that it is a positive of, -1 for a hard negative
    row: "Tensor"  # (n,) int64 row in its rank's slice

    def pack(self) -> "Tensor":
        """(n, 4) int64."""
        import torch

        return torch.stack(self, dim=1)

    @classmethod
    def unpack(cls, table: "Tensor") -> "DocumentKeys":
        return cls(*table.unbind(dim=1))


class DocumentScores(NamedTuple):
    """Row ids and scores of n documents from the data; nan where it has none."""

    row_id: "Tensor"  # (n,) int64 row id of a positive in the data, NO_ROW for a hard negative
    score: "Tensor"  # (n,) float64 score of a positive's pair, nan for a hard negative
    teacher: "Tensor"  # (n,) float64 score by the teacher

    def pack(self) -> "Tensor":
        """(n, 3) int64: the scores travel as their bits."""
        import torch

        return torch.stack([self.row_id, self.score.view(torch.int64), self.teacher.view(torch.int64)], dim=1)

    @classmethod
    def unpack(cls, table: "Tensor") -> "DocumentScores":
        import torch

        row_id, *scores = table.unbind(dim=1)
        return cls(row_id, *(bits.contiguous().view(torch.float64) for bits in scores))
