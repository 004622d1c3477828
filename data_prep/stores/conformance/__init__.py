"""Checks of what every store promises, for a plug-in's author: python -m data_prep.stores.conformance."""
