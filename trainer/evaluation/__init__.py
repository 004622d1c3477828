"""Metrics of a model on retrieval sets and scored pairs, two models compared, sizes and quantised vectors."""
