"""Writing a shard folder: spool, split, exclusions, Arrow files, manifest."""
