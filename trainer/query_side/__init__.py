"""A map of query vectors, trained against document vectors that stay as they lie in a store."""
