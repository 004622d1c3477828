"""The training run: setup, steps, checkpoints, messages, early stopping, dry run."""
