"""Checks: each decides one thing from the evidence of a trial."""
