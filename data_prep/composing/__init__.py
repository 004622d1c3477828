"""Inputs to one file of records: mixing, balance, search logs, the quickstart's sample."""
