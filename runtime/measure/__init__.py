"""Benchmarks: each figure beside a reference measured in the same run, with the conditions of both."""
