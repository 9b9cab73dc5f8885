"""Configurations: their model, their checks, their texts."""
