"""Reading every accepted input format, and what is wrong with a row."""
