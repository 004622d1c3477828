"""Checks of rows and shard folders: the gate of a run, decontamination, and the report of `inspect`."""
