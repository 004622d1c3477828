"""A run directory: its log, the record of the run, the trackers beside it."""
