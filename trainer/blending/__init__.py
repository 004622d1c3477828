"""Weights between a base and what was trained from it, and the share that serves best."""
