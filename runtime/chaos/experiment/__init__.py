"""Experiments: what to break when, on which machine, under which load, and by what to judge it."""
