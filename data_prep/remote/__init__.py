"""Object stores: URLs as inputs and shard folders, by pyarrow's own filesystems."""
