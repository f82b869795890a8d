"""Comparisons with peers; see docs/benchmarks.md."""
