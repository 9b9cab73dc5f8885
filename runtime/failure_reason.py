"""Why one of many trials could not be carried out, in a line: others go on, and somebody wants to know."""

import traceback
from pathlib import Path


def reason_of(error: Exception) -> str:
    """With the place: it may be a mistake of ours."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} ({Path(place.filename).name}:{place.lineno})"
