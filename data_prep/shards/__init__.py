"""Opening a shard folder: manifest, columns, rows, tokens and the keys that rows share."""
