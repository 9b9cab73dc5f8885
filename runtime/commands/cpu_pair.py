"""Two CPUs as an option of a benchmark: one for each side."""

import click


def cpu_pair(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """ "0,1" of an option, as two numbers."""
    if text is None:
        return None
    try:
        first, second = map(int, text.split(","))
    except ValueError as error:
        raise click.UsageError(f"--cpus {text}: two CPU numbers such as 0,1 are needed") from error
    return first, second
