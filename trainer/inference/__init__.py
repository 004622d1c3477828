"""Texts to embeddings over all ranks; reindexing and searching with them."""
