"""Losses of finetuner.py that the run file names as functions."""
