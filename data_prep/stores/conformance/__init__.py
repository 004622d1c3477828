"""What every store promises, as checks that a plug-in's author runs: python -m data_prep.stores.conformance."""
