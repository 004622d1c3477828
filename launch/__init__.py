"""Plan, command and start of runs. Never imports torch."""
