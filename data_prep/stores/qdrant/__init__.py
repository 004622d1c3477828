"""Qdrant: its local mode in this process, or a server."""
