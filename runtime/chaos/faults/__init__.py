"""Faults: what kinds there are, when each strikes, and one order to inject one. Carried out elsewhere."""
