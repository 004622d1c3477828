"""The rows that every optimizer step trains on. Never imports torch."""
