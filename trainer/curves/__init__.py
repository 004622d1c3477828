"""The growth of a metric with the number of pairs: small runs on nested shares of the data, a curve, a forecast."""
