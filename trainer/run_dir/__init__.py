"""A run directory: layout, checkpoints, log, the record of the run, trackers."""
