"""From sources to sharded Arrow data: records, formats, stores, pairs, hard negatives, shards. Never imports torch."""
