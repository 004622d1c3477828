"""The checks behind `launch plan` and `launch doctor`: exactness, ranks, footprint, forecast."""
