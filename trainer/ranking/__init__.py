"""Exact search over ranks: the best documents of every query, where each rank holds a share of the documents."""
