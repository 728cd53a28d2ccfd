"""Benchmarks: each runs a named peer, or the physical floor, in the same run and prints the ratio."""
