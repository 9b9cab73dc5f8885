"""The subcommands of `partvisor`, one module a subject."""
