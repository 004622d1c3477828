"""Every check that can run before a process group or a model exists. Never imports torch."""
