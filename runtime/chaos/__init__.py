"""The chaos lab: what breaks a machine on purpose, and what decides afterwards whether anything was lost."""
