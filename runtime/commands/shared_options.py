"""Options that several commands have: one wording each."""

from pathlib import Path
from typing import Final

import click

from runtime.commands.word_list import WordList

ARCHITECTURES: Final = ("microkernelized", "disaggregated", "monolithic", "hosted", "microkernel")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
html_option = click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write an offline page there, too."
)
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the config; may be given several times.",
)
architectures_option = click.option(
    "--architecture",
    "architectures",
    metavar="A[,B...]",
    type=WordList(*ARCHITECTURES),
    default="",
    help="Only these; default: all five.",
)

# -- of results that are kept
label_option = click.option("--label", default="", metavar="TEXT", help="Your own word for this run.")
no_store_option = click.option("--no-store", is_flag=True, help="Do not keep the result.")
store_option = click.option(
    "--store",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where results are kept; default: the user's own.",
)

# -- of traces
perfetto_option = click.option(
    "--perfetto",
    type=click.Path(path_type=Path),
    help="Write a trace for https://ui.perfetto.dev into this file.",
)
request_option = click.option(
    "--request",
    default="all",
    metavar="N",
    help="Which request goes there: a number, slowest, or all (default).",
)
