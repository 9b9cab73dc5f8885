"""Faults that are carried out in the process that serves a device, or in the stack."""
