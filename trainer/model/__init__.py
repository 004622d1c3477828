"""The embedder: building, tokenizing, packing, adapters, quantisation and saving."""
