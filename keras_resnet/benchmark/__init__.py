"""Benchmark: networks side by side on one machine, a process for each, with medians and ratios."""
