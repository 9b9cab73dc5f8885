"""`partvisor bench`: what talking costs here, the speed of rings and disks, at every depth, and of a recovery."""

import importlib
from pathlib import Path
from typing import Final

import click

from runtime.commands import bench_results, bench_store
from runtime.commands.bench_ladder import goals, ladder
from runtime.commands.bench_trace import trace
from runtime.commands.cpu_pair import cpu_pair
from runtime.commands.shared_options import html_option, json_option
from runtime.exits import CommandError

_KILLS_MAX: Final = 10_000

_quick_option = click.option(
    "--quick", is_flag=True, help="A tenth of the samples: for a look, not for a comparison."
)


@click.group()
def bench() -> None:
    """Measure, beside what can be compared in the same run.

    \b
    Example:
      partvisor bench ladder --quick
      partvisor bench goals
      partvisor bench ring
    """


def _run(target: str, **options: object) -> int:
    """Each has a function run(*, quick: bool, as_json: bool) -> int, which takes one of the other options too."""
    try:
        module = importlib.import_module(f"runtime.measure.bench_{target}")
    except ModuleNotFoundError as error:
        raise CommandError(f"the {target} benchmark is not part of this installation ({error})") from error
    exit_code: int = module.run(**options)
    return exit_code


def _plain(target: str, text: str) -> None:
    @bench.command(target, help=f"{text}\n\n\b\nExample:\n  partvisor bench {target} --quick")
    @_quick_option
    @json_option
    def command(quick: bool, as_json: bool) -> int:
        return _run(target, quick=quick, as_json=as_json)


def _on_two_cpus(target: str, text: str) -> None:
    @bench.command(target, help=f"{text}\n\n\b\nExample:\n  partvisor bench {target} --cpus 0,1")
    @click.option(
        "--cpus",
        metavar="A,B",
        callback=cpu_pair,
        help="The CPUs of the two sides; default: the first two allowed.",
    )
    @_quick_option
    @json_option
    def command(cpus: tuple[int, int] | None, quick: bool, as_json: bool) -> int:
        return _run(target, cpus=cpus, quick=quick, as_json=as_json)


_on_two_cpus("ring", "The ring alone, as ratios to C references of the same round.")
_on_two_cpus("disk", "A disk through a whole machine, as ratios to what it is made of.")
_on_two_cpus("intercept", "An intercepted port access, beside a blocking exchange and a bare hypercall.")
_on_two_cpus("claim", "Whether talking between guests is orders of magnitude slower than between processes.")
_plain("nbd", "A disk exported over NBD, beside other NBD servers under the same fio job.")
_plain("nested", "What each level of a tree of partitions adds to a disk request.")
_plain("sched", "Whether partitions get the processor time that they should.")


@bench.command("devices")
@click.argument("devices", nargs=-1, metavar="[DEVICE]...")
@click.option(
    "--waiting",
    type=click.Choice(["adaptive", "spin", "block"]),
    default="adaptive",
    show_default=True,
    help="How every side of the machines waits; peers sleep with block, and spin otherwise.",
)
@click.option("--cpus", metavar="A,B", callback=cpu_pair, help="Of the guest that asks, and of all others.")
@html_option
@click.option(
    "--svg", type=click.Path(path_type=Path), metavar="FILE", help="Draw there where the time goes."
)
@_quick_option
@json_option
def devices(
    devices: tuple[str, ...],
    waiting: str,
    cpus: tuple[int, int] | None,
    html: Path | None,
    svg: Path | None,
    quick: bool,
    as_json: bool,
) -> int:
    """Each device class through a machine: latency, rate, processor time, where it goes, and a peer beside it.

    \b
    Example:
      partvisor bench devices
      partvisor bench devices net serial --waiting block
      partvisor bench devices --html devices.html --svg where.svg
    """
    options = {"waiting": waiting, "cpus": cpus, "html": html, "svg": svg}
    return _run("devices", devices=devices, quick=quick, as_json=as_json, **options)


@bench.command("recovery")
@click.option("--kills", type=click.IntRange(1, _KILLS_MAX), help="Replacements a mode; default: 100.")
@_quick_option
@json_option
def recovery(kills: int | None, quick: bool, as_json: bool) -> int:
    """How long a guest waits when its root dies, hangs or is replaced, or its driver dies.

    \b
    Example:
      partvisor bench recovery --kills 20
    """
    return _run("recovery", kills=kills, quick=quick, as_json=as_json)


for _command in (
    ladder,
    goals,
    trace,
    bench_store.list_,
    bench_results.show,
    bench_results.compare,
    bench_results.export,
    bench_store.delete,
    bench_store.pin,
):
    bench.add_command(_command)
