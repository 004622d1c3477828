"""The masks of duplicates keep documents apart whose ids differ in case, width, marks or digits only."""

from types import SimpleNamespace

from hypothesis import given

from data_prep.records import Record
from tests.unit.data_prep.test_ids import DIFFERENT
from trainer.loss.masks import duplicate_mask
from trainer.train.data import TrainData


@given(DIFFERENT)
def test_only_rows_of_one_document_mask_each_other(pair):
    rows = [Record(f"q{i}", [f"p{i}"], doc_ids=[name]) for i, name in enumerate((*pair, pair[0]))]
    spec = SimpleNamespace(pool_prompt=True)
    source = SimpleNamespace(spec=spec, tokens=None, guides={}, _make_tokens=lambda *_: ([[1]] * 6, 0))
    batch = TrainData.make_batch(source, [0, 1, 2], rows, [0, 0, 0], 3, seed=0)
    keys = batch.documents
    mask = duplicate_mask(batch.row_keys, batch.row_query, keys.text, keys.document_id, keys.query)
    assert mask.tolist() == [[True, False, True], [False, True, False], [True, False, True]]
