"""Writing a shard folder: spool, split, exclusions, tokenising, Arrow files, manifest."""
