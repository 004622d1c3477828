"""Vector stores behind one interface: Chroma, Qdrant, PostgreSQL with pgvector, and plug-ins."""
