"""A campaign as JUnit XML: a test case for each trial, so that any CI shows which failed and why."""

from collections.abc import Sequence
from xml.etree import ElementTree

from runtime.chaos.experiment.journal import Finding, Header, Outcome, Trial


def junit_xml(header: Header, trials: Sequence[Trial]) -> str:
    """The document. A violation is a failure; what is inconclusive is an error, never a success."""
    name = str(header.experiment.get("experiment", {}).get("name", "chaos"))
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(trials)),
        failures=str(sum(trial.outcome is Outcome.VIOLATED for trial in trials)),
        errors=str(sum(trial.outcome is Outcome.INCONCLUSIVE for trial in trials)),
        time=f"{sum(trial.seconds for trial in trials):.3f}",
    )
    if header.left_out:
        properties = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(
            properties, "property", name="cannot be simulated, left out", value=", ".join(header.left_out)
        )
    for trial in trials:
        where = f".{trial.architecture}" if trial.architecture else ""
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{name}{where}",
            name=f"trial {trial.number} seed {trial.seed}",
            time=f"{trial.seconds:.3f}",
        )
        if trial.outcome is Outcome.PASSED:
            continue
        kind = "failure" if trial.outcome is Outcome.VIOLATED else "error"
        texts = [text for finding in trial.findings for text in _texts(finding)]
        texts += [trial.trouble] if trial.trouble else []
        problem = ElementTree.SubElement(
            case,
            kind,
            type=trial.outcome.value,
            message=_printable(texts[0] if texts else trial.outcome.value),
        )
        problem.text = _printable("\n".join(texts))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _texts(finding: Finding) -> list[str]:
    if finding.outcome is Outcome.PASSED:
        return []
    return [f"{finding.check}: {text}" for text in finding.texts or (finding.outcome.value,)]


def _printable(text: str) -> str:
    """XML has no way to write most control characters."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
