"""`partvisor bench`: the speed of this machine's rings and disks."""

import importlib
from typing import Final

import click

from runtime.exits import CommandError

# Each is a function run(*, cpus: tuple[int, int] | None, quick: bool, as_json: bool) -> int
_BENCHES: Final = {"ring": "runtime.measure.bench_ring", "disk": "runtime.measure.bench_disk"}


@click.command()
@click.argument("target", type=click.Choice(list(_BENCHES)))
@click.option("--cpus", metavar="A,B", help="The CPUs of the two sides; default: the first two allowed.")
@click.option("--quick", is_flag=True, help="A tenth of the samples: for a look, not for a comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(target: str, cpus: str | None, quick: bool, as_json: bool) -> int:
    """Measure the ring or the disk.

    Each figure is also given as a ratio to a C reference of the same run.

    \b
    Example:
      partvisor bench ring
      partvisor bench disk --json
    """
    pair = _cpu_pair(cpus)
    try:
        module = importlib.import_module(_BENCHES[target])
    except ModuleNotFoundError as error:
        raise CommandError(f"the {target} benchmark is not part of this installation ({error})") from error
    exit_code: int = module.run(cpus=pair, quick=quick, as_json=as_json)
    return exit_code


def _cpu_pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        first, second = map(int, text.split(","))
    except ValueError as error:
        raise click.UsageError(f"--cpus {text}: two CPU numbers such as 0,1 are needed") from error
    return first, second
