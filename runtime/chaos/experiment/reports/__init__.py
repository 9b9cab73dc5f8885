"""Reports of a campaign, drawn from its journal alone."""
