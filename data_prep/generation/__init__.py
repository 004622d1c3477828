"""Question-answer pairs from a store: client, concurrency, answer cache, answer parser, filters, prompt, offline."""
