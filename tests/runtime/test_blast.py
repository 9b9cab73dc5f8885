"""A blast: what is read from histories and events, what contradicts a promise, and how it is shown. Made-up trials;
`tests/machine/test_blast.py` has real ones."""

import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.blast.campaign import Plan, Result
from runtime.blast.faults import HONEST, MEANING, Fault
from runtime.blast.findings import Death, Seen, Struck, Trial, deaths_of, seen_of
from runtime.blast.machine_files import FAULTY, choose_target, prepare
from runtime.blast.matrix import LEGEND, cell_text, rows, sentences
from runtime.blast.page import blast_page, severity
from runtime.blast.promises import PROMISES, Promise, broken, in_words
from runtime.blast.trial import Order
from runtime.chaos.checker import check
from runtime.chaos.history import Ending, History
from runtime.cli import main
from runtime.config.architecture import Architecture
from runtime.config.loading import load
from runtime.exits import CommandError
from tests.runtime.history_script import Script
from tests.runtime.test_drawing import collected

MS: Final = 1_000_000
CONFIG: Final = Path(__file__).parent.parent.parent / "configs" / "blast.toml"
IDLE: Final = "partitions.guests.idle:main"
GOOD: Final = Seen(answers=900, wait_ms=3.0, quiet_ms=2.0, back_ms=0.0, failed=0, wrong={}, explained=())
NEVER: Final = replace(GOOD, back_ms=None, wait_ms=3000.0)
SPOILT: Final = replace(GOOD, wrong={"torn": 2}, explained=("block 3: torn",))


def trial(
    architecture: Architecture = Architecture.DISAGGREGATED, fault: Fault = Fault.CRASH, **others: Any
) -> Trial:
    made: dict[str, Any] = {
        "architecture": architecture,
        "fault": fault,
        "seed": 1,
        "seconds": 3.0,
        "struck": Struck(5, 42, {}),
        "deaths": (),
        "machine_down": "",
        "target": GOOD,
        "bystander": GOOD,
        "left_behind": (),
        "trouble": "",
    }
    return Trial(**(made | others))


def died(*roles: str) -> dict[str, Any]:
    return {"deaths": tuple(Death(role, role, "signal 11", 3.0) for role in roles)}


# -- what is read


def steady(until_ms: int, gap: tuple[int, int] | None = None, ending: Ending = Ending.FINISHED) -> History:
    """A request a millisecond, which takes one; none is answered within `gap`."""
    script = Script()
    for start in range(until_ms):
        end = start + 1
        if gap is not None and gap[0] <= start < gap[1]:
            if start > gap[0]:
                continue
            end = gap[1]
        script.read(start * MS, end * MS, 0)
    return script.history(ending)


@given(st.integers(20, 200), st.integers(26, 300), st.integers(5, 100))
def test_a_wait_is_found_wherever_it_is(begin: int, length: int, more: int) -> None:
    """The strike falls into it: it is measured as a whole, and it was over when the answer came."""
    history = steady(begin + length + more, (begin, begin + length))
    struck = begin + length // 2
    seen = seen_of([history], [check([history])], struck * MS, 10**12)
    assert seen.wait_ms == length
    assert seen.back_ms == begin + length - struck
    assert seen.quiet_ms == 1
    assert seen.serves


def test_a_wait_before_the_strike_is_the_hosts() -> None:
    history = steady(300, (50, 80))
    seen = seen_of([history], [check([history])], 200 * MS, 10**12)
    assert (seen.wait_ms, seen.back_ms, seen.quiet_ms) == (1, 0, 30)


@pytest.mark.parametrize("ending", [Ending.NONE, Ending.GAVE_UP])
def test_who_gets_no_answer_any_more_is_not_back(ending: Ending) -> None:
    """Not even if there were answers after the strike: those were on their way."""
    script = Script()
    for start in range(100):
        script.read(start * MS, (start + 1) * MS, 0)
    script.read(100 * MS, None)
    last_ns = 100 * MS if ending is Ending.NONE else 700 * MS
    history = script.history(ending, last_ns)
    seen = seen_of([history], [check([history])], 90 * MS, 700 * MS)
    assert not seen.serves
    assert seen.wait_ms == 600
    worse = seen_of([steady(1000), history], [], 90 * MS, 700 * MS)
    assert not worse.serves, "of several guests the worst counts"


def test_wrong_data_is_counted_and_a_hang_is_none() -> None:
    script = Script()
    script.write(0, 5)
    script.read(10, 20, 12345)
    script.read(30, None)
    history = script.history(Ending.NONE)
    seen = seen_of([history], [check([history])], 8, 50)
    assert seen.wrong == {"invented": 1}
    assert seen.explained


def event(kind: str, name: str | None, told_ns: int, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "partition": name, "monotonic_ns": told_ns, "fields": {"reason": "r", **fields}}


def test_the_dead_are_known_by_their_roles() -> None:
    """Who had ended before, or after, or was through, is not among them."""
    names = ["disk0", "disk1", "load", "bystander", "load.vmm", "bystander.vmm"]
    events = [event("partition.exited", name, 50) for name in names]
    events += [event("root.exited", "root", 99, at_ns=60), event("root.exited", "root", 10, at_ns=10)]
    events += [event("partition.exited", "late", 200), event("partition.exited", "through", 50)]
    events += [event("guest.verified", "through", 49)]
    drivers = ("disk0", "disk1", "load.vmm", "bystander.vmm")
    found = deaths_of(events, 20, 100, "disk0", ["load", "through"], drivers)
    assert [death.role for death in found] == [
        "driver", "other driver", "guest", "bystander", "monitor", "other monitor", "root",
    ]  # fmt: skip


# -- promises

BREACHES: Final[dict[Promise, dict[str, Any]]] = {
    Promise.NOTHING_LEFT: {"left_behind": ("process 1",)},
    Promise.HYPERVISOR_LIVES: {"machine_down": "it died"},
    Promise.ROOT_LIVES: died("root"),
    Promise.GUESTS_LIVE: died("guest"),
    Promise.OTHER_DRIVERS_LIVE: died("other monitor"),
    Promise.BYSTANDER_DATA: {"bystander": SPOILT},
    Promise.BYSTANDER_GOES_ON: {"bystander": NEVER},
    Promise.TARGET_DATA: {"target": SPOILT},
    Promise.TARGET_COMES_BACK: {"target": NEVER},
}


@pytest.mark.parametrize("architecture", Architecture)
@pytest.mark.parametrize("promise", Promise)
def test_each_promise_is_contradicted_by_its_breach_and_by_no_less(
    architecture: Architecture, promise: Promise
) -> None:
    for fault in Fault:
        assert broken(trial(architecture, fault)) == ()
        found = broken(trial(architecture, fault, **BREACHES[promise]))
        assert (promise in found) == (fault in PROMISES[architecture].get(promise, ()))
        assert broken(trial(architecture, fault, struck=None, **BREACHES[promise])) == ()


def test_a_driver_of_its_own_never_costs_more_than_its_own_guests() -> None:
    """What the word isolation says, whatever else the table may come to promise."""
    for architecture in (Architecture.DISAGGREGATED, Architecture.HOSTED, Architecture.MICROKERNEL):
        for promise in (Promise.ROOT_LIVES, Promise.BYSTANDER_DATA, Promise.BYSTANDER_GOES_ON):
            assert PROMISES[architecture][promise] == set(Fault)
    assert all(promised[Promise.TARGET_DATA] <= HONEST for promised in PROMISES.values())


# -- how it is shown


def result(trials: list[Trial], rounds: int = 1) -> Result:
    architectures = tuple(dict.fromkeys(each.architecture for each in trials))
    faults = tuple(dict.fromkeys(each.fault for each in trials))
    plan = Plan(source="c.toml", target="disk0", architectures=architectures, faults=faults, rounds=rounds)
    return Result(plan, 1, 9.0, tuple(trials))


SHOWN: Final = [
    (trial(), "none 3/3", "calm"),
    (trial(**died("driver"), target=replace(GOOD, wait_ms=21.4, back_ms=20.0)), "driver 21/3", "own"),
    (trial(**died("root"), target=replace(GOOD, wait_ms=21.4, back_ms=20.0)), "root! 21/3", "spread"),
    (trial(fault=Fault.NO_REPLIES, target=NEVER), "none never/3", "gone"),
    (trial(fault=Fault.WILD_WRITE, target=SPOILT), "none 3/3 wrong 2", "wrong"),
    (trial(fault=Fault.WILD_WRITE, bystander=SPOILT), "none! 3/3 WRONG 2", "wrong"),
    (trial(Architecture.MONOLITHIC, machine_down="it died"), "all", "down"),
    (trial(struck=Struck(5, 4, {"bytes": 1, "stopped_by": "nobody but us"})), "none* 3/3", "calm"),
    (trial(struck=None), "?", None),
]


@pytest.mark.parametrize(("one", "text", "colour"), SHOWN)
def test_a_cell_says_what_happened(one: Trial, text: str, colour: str | None) -> None:
    whole = result([one])
    cell = whole.cell(one.fault, one.architecture)
    assert cell_text(cell) == text
    assert rows(whole) == [{"fault": one.fault.value, one.architecture.value: text}]
    assert bool(whole.contradictions) == ("!" in text)
    assert whole.inconclusive == (text == "?")
    for mark in set("*!?") & set(text):
        assert f"{mark}: " in LEGEND
    if colour is not None:
        assert severity(cell) == colour
    page = blast_page(whole)
    assert "http" not in page.replace("http-equiv", "")
    assert one.fault.value in "".join(collected(page).text)


def test_of_several_rounds_the_median_wait_and_the_worst_of_the_rest() -> None:
    waits = [replace(GOOD, wait_ms=wait, back_ms=wait) for wait in (20.0, 30.0, 400.0)]
    trials = [trial(target=wait) for wait in waits]
    assert cell_text(result(trials, 3).cells[0]) == "none 30/3"
    trials[1] = trial(target=NEVER, **died("driver"))
    assert cell_text(result(trials, 3).cells[0]) == "driver! never/3"


def test_every_cell_is_tried_once_a_round_and_the_seed_decides_the_order() -> None:
    plan = Plan(source="c", target="d", rounds=3, seed=7)
    orders = plan.orders()
    cells = [(order.fault, order.architecture) for order in orders]
    wanted = {(fault, architecture) for fault in Fault for architecture in Architecture}
    for start in range(0, len(cells), len(wanted)):
        assert set(cells[start : start + len(wanted)]) == wanted
    assert orders == plan.orders() != replace(plan, seed=8).orders()
    assert len({order.seed for order in orders}) == 3


def test_all_that_was_found_is_in_the_table_for_programs() -> None:
    table = result([trial(**died("root"), trouble="a word")]).to_table()
    (cell,) = table["cells"]
    assert cell["dead"] == ["root"]
    assert cell["contradicts"] == [Promise.ROOT_LIVES]
    assert cell["trials"][0]["deaths"][0]["reason"] == "signal 11"
    assert table["contradictions"]
    assert "a word" in table["troubles"][0]
    assert any(MEANING[Fault.CRASH] in line for line in sentences(result([trial()])))


# -- the config


def test_a_trial_has_files_of_its_own_and_a_driver_around_the_targets(tmp_path: Path) -> None:
    seed = random.randrange(1, 1000)
    made = prepare(str(CONFIG), (), Architecture.DISAGGREGATED, "disk0", Fault.HANG, seed, 9, tmp_path)
    config = load(made.config)
    device = config.device("disk0")
    assert device.driver == FAULTY
    assert device.args["fault"] == "hang"
    assert device.args["record_at"] == device.size
    assert device.path is not None
    assert device.path.stat().st_size > int(device.size or 0)
    assert config.device("disk1").driver is None
    assert {guest.device for guest in made.on(target=True)} == {"disk0"}
    assert [guest.name for guest in made.on(target=False)] == ["bystander"]
    seeds = [partition.args["seed"] for partition in config.partitions]
    assert len(set(seeds)) == 2
    assert all(path.is_relative_to(tmp_path) for path in made.images.values())


def test_a_users_own_driver_is_wrapped(tmp_path: Path) -> None:
    overrides = ("root.device.disk0.driver=json:JSONDecoder", "root.device.disk0.args={ x = 3 }")
    text = CONFIG.read_text().replace('backend = "file"', "", 1)
    source = tmp_path / "own.toml"
    source.write_text(text)
    folder = tmp_path / "trial"
    folder.mkdir()
    made = prepare(str(source), overrides, Architecture.MICROKERNELIZED, "disk0", Fault.CRASH, 1, 9, folder)
    args = load(made.config).device("disk0").args
    assert (args["driver"], args["args"]) == ("json:JSONDecoder", {"x": 3})


@pytest.mark.parametrize(
    ("overrides", "target", "says"),
    [
        (["partition.bystander.args.device=disk0"], None, "another disk"),
        ([f"partition.{name}.program={IDLE}" for name in ("load", "bystander")], None, "no guest verifies"),
        ([], "disk7", "no verifying guest is on disk7"),
        (["root.device.disk0.read_only=true", f"root.device.disk0.path={CONFIG}"], None, "read-only"),
    ],
)
def test_a_config_that_could_show_nothing_is_refused_in_a_line(
    overrides: list[str], target: str | None, says: str
) -> None:
    with pytest.raises(CommandError, match=says) as refused:
        choose_target(load(CONFIG, overrides), "c.toml", target)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [["--fault", "mischief"], ["--architecture", "x"], ["--rounds", "0"]])
def test_what_does_not_exist_is_refused_and_nothing_is_booted(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["blast", str(CONFIG), *words]) == 2
    assert "--help" in capsys.readouterr().err


def test_a_trial_that_raises_shows_nothing_and_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Order] = []
    fails_at = 2

    def run(order: Order) -> Trial:
        made.append(order)
        if len(made) == fails_at:
            raise ProcessLookupError(3, "No such process")
        return trial(architecture=order.architecture, fault=order.fault, seed=order.seed)

    monkeypatch.setattr("runtime.blast.campaign.run_trial", run)
    monkeypatch.setattr(
        signal, "signal", lambda *_: None
    )  # the command would have this process end otherwise
    command = ["blast", "configs/blast.toml", "--fault", "crash", "--architecture"]
    assert main([*command, "disaggregated,hosted,microkernel"]) == 1
    told = capsys.readouterr().out
    assert len(made) == 3
    failed = made[1].architecture
    assert told.count("it could not be carried out: ProcessLookupError: [Errno 3] No such process (") == 1
    assert f"? {failed}, crash, seed 1: it could not be carried out" in told
    made.clear()
    fails_at = 1  # at once: there is nothing to lose, and it would be so in each
    with pytest.raises(ProcessLookupError):
        main([*command, "hosted,microkernel"])
    assert len(made) == 1


def test_the_docs_promise_what_is_checked() -> None:
    """Word by word, all of it."""
    promised = [
        [promise.value, *(in_words(PROMISES[each].get(promise, ())) for each in Architecture)]
        for promise in Promise
    ]
    page = (CONFIG.parent.parent / "docs" / "isolation.md").read_text()
    heading = ["promise", *(each.value for each in Architecture)]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    start = lines.index(heading) + 2
    assert lines[start : start + len(promised)] == promised
