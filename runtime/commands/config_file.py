"""`partvisor validate` and `partvisor schema`: config files, without starting anything."""

import json

import click

from runtime.exits import ExitCode
from runtime.reports import print_json


@click.command()
@click.argument("file", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As for `partvisor run`.")
@click.option("--json", "as_json", is_flag=True, help="Print {file, valid, problems} as JSON.")
def validate(file: str, overrides: tuple[str, ...], as_json: bool) -> int:
    """Check a config file.

    Reports every mistake in it: where it is, what is there, what is allowed. Exits with 2 if there is any.

    \b
    Example:
      partvisor validate configs/quickstart.toml
    """
    from runtime.config.document import ConfigError
    from runtime.config.loading import load

    try:
        config = load(file, overrides)
    except ConfigError as error:
        if not as_json:
            raise
        problems = [problem.fields() for problem in error.problems]
        print_json({"file": file, "valid": False, "problems": problems})
        return ExitCode.USAGE
    if as_json:
        print_json({"file": file, "valid": True, "problems": []})
    else:
        partitions, devices = len(config.partitions), len(config.root.devices)
        print(f"{file}: valid: machine {config.machine.name}, partitions: {partitions}, devices: {devices}")
    return ExitCode.DONE


@click.command()
def schema() -> int:
    """Print the JSON schema of config files. Editors find it through a first line `#:schema FILE`.

    \b
    Example:
      partvisor schema > configs/partvisor.schema.json
    """
    from runtime.config.model import json_schema

    print(json.dumps(json_schema(), indent=2))
    return ExitCode.DONE
