"""Metrics: one family a file, each a class built from keyword options, with its `spec` and its reference implementation."""
