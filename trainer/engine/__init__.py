"""Engines that run a model on one process or many: forward and backward passes, updates, gathered state."""
