"""Opening a shard folder: manifest, columns, rows and the keys that rows share."""
