"""OpenAI-compatible servers: address and key, calls and their limits, answers kept on disk, vectors of texts."""
