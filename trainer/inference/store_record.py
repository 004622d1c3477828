"""Names in a collection's own metadata under which reindex records whose vectors it holds."""

from data_prep.stores.base import OWN

FINGERPRINT, DIM, STATE, SOURCE, MODEL, BEFORE = (
    f"{OWN}{name}" for name in ("model_sha256", "dim", "state", "source", "model", "alias_before")
)
PROMPT, MAX_LEN, WHERE = (f"{OWN}{name}" for name in ("passage_prompt", "passage_max_len", "where"))
CONTENT = f"{OWN}content"  # digest of the chunks, as the last run left them
PRECISION = f"{OWN}precision"  # of matrix products; records before it are of fp32
UNFINISHED, WHOLE = "unfinished", "whole"  # values of STATE
