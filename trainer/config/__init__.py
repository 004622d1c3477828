"""The run file: its sections, reading it, and which modes go together. No torch."""
