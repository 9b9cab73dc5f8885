"""Programs for child partitions. A config names one as `partitions.guests.MODULE:FUNCTION`."""
