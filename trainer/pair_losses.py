"""Losses of the Python API that the run file names as functions."""
