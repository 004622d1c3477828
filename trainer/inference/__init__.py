"""Texts to embeddings over all ranks; evaluation, reindexing and searching with them."""
