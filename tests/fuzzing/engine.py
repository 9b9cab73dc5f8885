"""Runs a target under a coverage-guided fuzzer: `python -m tests.fuzzing.engine NAME --seconds N`; see scripts/fuzz.

The fuzzer is atheris, which is libFuzzer with Python's branches. Everything of ours that a target imports is
instrumented. An input that fails is written to the corpus' folder, and the process ends with its traceback.
"""

import argparse
import sys
from pathlib import Path

EXIT_LACKING = 3


def main() -> int:
    """Exit codes: 0 nothing was found; 2 no such target; 3 there is no atheris; otherwise libFuzzer's own."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz")
    parser.add_argument("name")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"))
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        print("fuzz: atheris is missing: .venv/bin/pip install atheris", file=sys.stderr)
        return EXIT_LACKING
    with atheris.instrument_imports(include=["bus", "partitions", "runtime"]):
        from tests.fuzzing.targets import INPUT_BYTES_MAX, all_targets

        targets = all_targets()
    if (target := targets.get(options.name)) is None:
        print(f"fuzz: no target {options.name}: there are {', '.join(targets)}", file=sys.stderr)
        return 2
    folder = options.corpus / target.name
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-max_len={INPUT_BYTES_MAX}",
        "-verbosity=0",
        "-print_final_stats=1",
        f"-artifact_prefix={options.corpus}/{target.name}-",
        str(folder),
    ]
    atheris.Setup(arguments, target.run)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
