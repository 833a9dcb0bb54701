"""Measurements against other people's work; needs requirements/benchmarks.txt beside the package. Run from the repository's root."""
