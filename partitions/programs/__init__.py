"""Ordinary programs beside a guest's own: in its network namespace, behind walls of their own, without its memory."""
