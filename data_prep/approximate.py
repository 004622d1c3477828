"""Approximate nearest neighbours in a graph (HNSW; Malkov and Yashunin 2018): the one module that loads usearch."""
