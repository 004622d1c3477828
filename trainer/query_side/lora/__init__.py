"""LoRA on the query encoder, trained against document vectors that stay as they lie in a store."""
