"""Every way into training: flags, flat JSON, Python, records. Each becomes one run file."""
