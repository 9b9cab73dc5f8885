"""`partvisor bench`: the speed of this machine's rings and disks, and how fast it recovers."""

import importlib
from typing import Final

import click

from runtime.exits import CommandError

# Each has a function run(*, quick: bool, as_json: bool) -> int, which takes one of the other options too.
_BENCHES: Final = {
    "ring": "runtime.measure.bench_ring",
    "disk": "runtime.measure.bench_disk",
    "recovery": "runtime.measure.bench_recovery",
}
_KILLS_MAX: Final = 10_000


@click.command()
@click.argument("target", type=click.Choice(list(_BENCHES)))
@click.option("--cpus", metavar="A,B", help="The CPUs of the two sides; default: the first two allowed.")
@click.option(
    "--kills",
    type=click.IntRange(1, _KILLS_MAX),
    help="recovery: replacements of the root a mode; default: 100.",
)
@click.option("--quick", is_flag=True, help="A tenth of the samples: for a look, not for a comparison.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(target: str, cpus: str | None, kills: int | None, quick: bool, as_json: bool) -> int:
    """Measure the ring, the disk, or how long a guest waits when the root dies.

    Figures of ring and disk are also given as ratios to a C reference of the same run.

    \b
    Example:
      partvisor bench ring
      partvisor bench disk --json
      partvisor bench recovery --kills 20
    """
    options: dict[str, object]
    if target == "recovery":
        if cpus is not None:
            raise click.UsageError("--cpus is for ring and disk: recovery uses what its machine may use")
        options = {"kills": kills}
    else:
        if kills is not None:
            raise click.UsageError(f"--kills is for recovery, not for {target}")
        options = {"cpus": _cpu_pair(cpus)}
    try:
        module = importlib.import_module(_BENCHES[target])
    except ModuleNotFoundError as error:
        raise CommandError(f"the {target} benchmark is not part of this installation ({error})") from error
    exit_code: int = module.run(quick=quick, as_json=as_json, **options)
    return exit_code


def _cpu_pair(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    try:
        first, second = map(int, text.split(","))
    except ValueError as error:
        raise click.UsageError(f"--cpus {text}: two CPU numbers such as 0,1 are needed") from error
    return first, second
