"""`partvisor capture`: what passes through a network, as a pcap file."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, BinaryIO

import click

from runtime.exits import CommandError, ExitCode
from runtime.reports import print_json

if TYPE_CHECKING:
    from runtime.machine.capture_client import Captured


@click.command()
@click.argument("name")
@click.argument("out", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--port", metavar="NIC", help="Of a partition: which adapter; of a network: whose port, or outside."
)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="End after so long.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many frames.")
@click.option(
    "--snap",
    "snap_bytes",
    type=click.IntRange(1, 65_535),
    default=65_535,
    show_default=True,
    metavar="BYTES",
    help="Keep so much of each frame.",
)
@click.option("-m", "--machine", metavar="NAME", help="Which machine; may be left out when only one runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON at the end.")
def capture(
    name: str,
    out: str,
    port: str | None,
    seconds: float | None,
    count: int | None,
    snap_bytes: int,
    machine: str | None,
    as_json: bool,
) -> int:
    """Write the frames of NAME into the pcap file OUT, with times in nanoseconds, until Ctrl-C.

    NAME is a network: each frame that comes into its switch, once. Or a partition: what its adapter sends, and what is
    handed to it. With OUT "-" the file goes to standard output. If the process that has the switch dies, it goes on
    with the next one, and says how often that was.

    \b
    Example:
      partvisor capture net0 all.pcap --seconds 10
      partvisor capture left left.pcap --count 1000 --snap 96
      partvisor capture net0 --port outside - | tshark -r -
    """
    from runtime.machine.capture_client import Recorder
    from runtime.machine.rundir import resolve

    if as_json and out == "-":
        raise click.UsageError("--json and the capture cannot both go to standard output")
    folder = resolve(machine)
    recorder = Recorder(folder, name, port, snap_bytes)  # first: a refusal leaves no file, and none empty
    with contextlib.closing(recorder), _naming(out), _opened(out) as file:
        recorder.write_to(file)
        began = shown = time.monotonic()

        def tick(captured: "Captured") -> None:
            nonlocal shown
            if os.isatty(2) and time.monotonic() - shown > 2:
                shown = time.monotonic()
                click.echo(f"{captured.frames} frames, {captured.dropped} dropped; end with Ctrl-C", err=True)

        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            recorder.run(seconds, count, tick)
        except (KeyboardInterrupt, BrokenPipeError):
            pass  # enough, in either way
        finally:
            signal.signal(signal.SIGTERM, before)
        with contextlib.suppress(BrokenPipeError):
            recorder.finish(count)
    captured = recorder.captured
    if as_json:
        print_json(
            {
                "frames": captured.frames,
                "bytes": captured.bytes,
                "dropped": captured.dropped,
                "interruptions": captured.interruptions,
                "lost": captured.lost or None,
                "seconds": round(time.monotonic() - began, 3),
            }
        )
    else:
        interrupted = f"; interruptions: {captured.interruptions}" if captured.interruptions else ""
        if captured.lost:
            interrupted += f"; it ended early: {captured.lost}"
        click.echo(
            f"{captured.frames} frames, {captured.bytes} bytes in {out}; {captured.dropped} dropped{interrupted}",
            err=True,
        )
    return ExitCode.DONE


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _naming(out: str) -> Iterator[None]:
    from runtime.machine.capture_client import NoRoom

    try:
        yield
    except NoRoom as error:
        raise CommandError(f"{out}: {error}") from error


@contextlib.contextmanager
def _opened(out: str) -> Iterator[BinaryIO]:
    """Not buffered: what could not be written is not tried again at the end."""
    if out == "-":
        yield sys.stdout.buffer
        return
    try:
        file = Path(out).open("wb", buffering=0)  # noqa: SIM115 - only its making is to be refused so
    except OSError as error:
        raise CommandError(f"{out}: {error.strerror}: choose a place that you may write to") from error
    with file:
        yield file
