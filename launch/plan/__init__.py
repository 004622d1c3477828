"""`launch plan`: memory, time and traffic of a run, estimated before it starts."""
