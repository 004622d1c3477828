"""Answers for `launch plan` and `launch doctor`: exactness, ranks, memory footprint, forecast."""
