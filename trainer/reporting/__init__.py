"""One page and one model card about a run, made from the run's own files."""
