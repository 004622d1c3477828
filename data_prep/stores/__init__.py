"""Chroma and Qdrant behind one interface."""
