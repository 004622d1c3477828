"""Texts without padding: joined end to end, and attention within each."""
