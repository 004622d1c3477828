"""Parts that every package shares: errors, console, files, workers, secrets, HTML page and plots."""
