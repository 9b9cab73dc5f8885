"""Hypercalls as a partition makes them: arguments, the socket, one mixin a family."""
