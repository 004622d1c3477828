"""Texts without padding: laid end to end, and attention within each."""
