"""Verdicts are found once for each machine, remembered, checked at each load, and no file can spoil that."""

import json
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.supervisor import Supervisor
from engine.verdicts import Fate, Finding, Known, Machine, VerdictFile, cache_folder, hashed
from tests.engine.fake_candidates import Clock, Fake, FakeTrial, always, operation

HERE = Machine("Apple M9", "0.32.4", "Darwin 27.0")


class World:
    """A file, and processes that begin with it one after the other; what each tries is its own."""

    def __init__(self, folder: Path | None, machine: Machine = HERE) -> None:
        self.file = VerdictFile(folder, machine)
        self.clock = Clock()
        self.old = Fake("old", self.clock)
        self.new = Fake("new", self.clock, costs=always(0.5))

    def chosen(self, *, retune: bool = False) -> str:
        """By a new process."""
        self.old.asked, self.new.asked = [], []
        return Supervisor(self.file, self.clock, retune=retune).choice(operation([self.old, self.new])).name

    @property
    def tuned(self) -> bool:
        return "small" in self.new.asked

    @property
    def path(self) -> Path:
        assert self.file.path is not None
        return self.file.path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_verdict_is_found_once_and_the_chosen_is_spot_checked_at_each_load(world: World) -> None:
    assert world.chosen() == "new"
    assert world.tuned
    assert world.new.asked[-2:] == ["spot, alone", "spot, alone"]
    assert world.chosen() == "new"
    assert world.new.asked == ["spot", "spot, alone", "spot, alone"]
    assert world.old.asked == []


def test_one_process_asks_once(world: World) -> None:
    supervisor = Supervisor(world.file, world.clock)
    for _ in range(3):
        assert supervisor.choice(operation([world.old, world.new])) is world.new
    assert world.new.asked.count("spot") == 1


def test_who_fails_the_spot_check_is_out_at_once_is_logged_and_stays_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.chosen()
    world.new.error = 1.01
    assert world.chosen() == "old"
    assert not world.tuned
    assert "sum: new is out: differs (spot: 2 of 2 numbers off, by 1.01 of the bound)" in caplog.text
    world.new.error = 0.0
    assert world.chosen() == "old"
    assert world.new.asked == []
    assert world.chosen(retune=True) == "new"


@pytest.mark.parametrize(
    "about", [{"broken": True}, {"throws": "spot"}, {"alone_adds": 2.0**-22}, {"error": np.nan}], ids=str
)
def test_any_fault_in_a_spot_check_puts_out(world: World, about: dict[str, object]) -> None:
    world.chosen()
    for name, value in about.items():
        setattr(world.new, name, value)
    assert world.chosen() == "old"


def test_retune_finds_everything_anew(world: World) -> None:
    world.chosen()
    world.new.costs = always(2.0)
    assert world.chosen() == "new"
    assert world.chosen(retune=True) == "old"
    assert world.tuned
    assert world.chosen() == "old"


@pytest.mark.parametrize("changed", ["old", "new"])
def test_another_source_is_another_candidate(world: World, changed: str) -> None:
    world.chosen()
    getattr(world, changed).source = "other text"
    world.chosen()
    assert world.tuned


def test_a_new_candidate_is_tried(world: World) -> None:
    world.chosen()
    third = Fake("third", world.clock, costs=always(0.1))
    assert Supervisor(world.file, world.clock).choice(operation([world.old, world.new, third])).name == "third"


@pytest.mark.parametrize("change", [{"chip": "Apple M10"}, {"mlx": "0.33.0"}, {"system": "Darwin 27.1"}], ids=str)
def test_another_chip_mlx_or_system_knows_nothing_of_it(tmp_path: Path, change: dict[str, str]) -> None:
    first, second = World(tmp_path), World(tmp_path, replace(HERE, **change))
    first.chosen()
    second.chosen()
    assert second.tuned
    first.chosen()
    assert not first.tuned
    second.path.write_bytes(first.path.read_bytes())  # even under its name
    second.chosen()
    assert second.tuned


@pytest.mark.parametrize(("changed", "to"), [("system", "Darwin"), ("release", "27.1")])
def test_the_system_and_its_release_are_part_of_the_machine(
    changed: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its compiler of kernels comes with it."""
    before = Machine.here("Apple M9", "0.32.4")
    monkeypatch.setattr(f"platform.{changed}", lambda: to)
    after = Machine.here("Apple M9", "0.32.4")
    assert to in after.system
    assert before != after
    assert before.file_name != after.file_name


def test_a_bit_flipped_at_any_byte_is_a_miss_and_no_error(world: World) -> None:
    world.chosen()
    whole = world.path.read_bytes()
    assert set(world.file.read().findings) == {"sum"}
    rng = np.random.default_rng(0)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        world.path.write_bytes(flipped)
        assert world.file.read() == Known(), at


def test_a_file_cut_at_any_byte_is_a_miss_and_no_error(world: World) -> None:
    world.chosen()
    whole = world.path.read_bytes()
    for at in range(len(whole)):
        world.path.write_bytes(whole[:at])
        assert world.file.read() == Known(), at
    world.path.write_bytes(whole + b"\n")
    assert world.file.read() == Known()


SOUND = {"candidate": "old", "source": "x", "fate": "CHOSEN", "reason": "", "seconds": {}}


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"machine": vars(HERE)},
        {"machine": vars(HERE), "trying": {}, "findings": []},
        {"machine": vars(HERE), "trying": {}, "findings": {"sum": []}},
        {"machine": vars(HERE), "trying": {}, "findings": {"sum": [SOUND, SOUND]}},
        {"machine": vars(HERE), "trying": {}, "findings": {"sum": [{**SOUND, "fate": "SLOWER"}]}},
        {"machine": vars(HERE), "trying": {}, "findings": {"sum": [{**SOUND, "fate": 3}]}},
        {"machine": vars(HERE), "trying": {}, "findings": {"sum": [{**SOUND, "seconds": {"a": "b"}}]}},
        {"machine": vars(HERE), "trying": {}, "findings": {"sum": [{**SOUND, "more": 1}]}},
        {"machine": vars(HERE), "trying": [], "findings": {}},
    ],
    ids=str,
)
def test_a_file_with_a_digest_that_means_nothing_is_a_miss(world: World, body: object) -> None:
    text = json.dumps(body)
    world.path.parent.mkdir(exist_ok=True)
    world.path.write_text(f"puna kernels 1 {hashed(text)}\n{text}")
    assert world.file.read() == Known()
    assert world.chosen() == "new"
    assert world.file.read().findings["sum"].chosen == "new"


def test_deeply_nested_nonsense_is_a_miss(world: World) -> None:
    text = "[" * 100_000
    world.path.write_text(f"puna kernels 1 {hashed(text)}\n{text}")
    assert world.chosen() == "new"


def test_a_file_larger_than_verdicts_ever_are_is_not_read(world: World) -> None:
    world.chosen()
    sound = world.file.read().findings["sum"]
    first, *others = sound.verdicts
    world.file.found("sum", Finding((replace(first, reason="x" * 2**22), *others)))
    assert world.path.stat().st_size > 2**22
    assert world.file.read() == Known()


def test_what_is_no_file_or_cannot_be_read_is_a_miss(world: World) -> None:
    world.path.mkdir()
    assert world.chosen() == "new"
    world.path.rmdir()
    os.mkfifo(world.path)
    assert world.chosen() == "new"  # and nobody waits for a writer
    assert stat.S_ISREG(world.path.stat().st_mode)
    world.path.write_bytes(b"\xff" * 2**23)
    assert world.chosen() == "new"


def test_a_folder_that_cannot_be_made_costs_a_warning_and_tuning_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    world = World(tmp_path / "file" / "below")
    for _ in range(2):
        assert world.chosen() == "new"
        assert world.tuned
    assert caplog.messages[-1].endswith("kernels will be tried again next time")


def test_a_user_without_a_home_has_no_file() -> None:
    world = World(None)
    assert world.chosen() == "new"
    assert world.chosen() == "new"
    assert world.tuned


def test_a_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(world: World) -> None:
    world.chosen()
    assert [path.name for path in world.path.parent.iterdir()] == [HERE.file_name]


def test_processes_that_tune_at_once_keep_each_others_verdicts(world: World) -> None:
    one, other = (Supervisor(world.file, world.clock) for _ in range(2))
    one.choice(operation([world.old, world.new], "sum"))
    other.choice(operation([world.old, world.new], "product"))
    assert set(world.file.read().findings) == {"sum", "product"}


class Death(BaseException):
    """The process ends."""


def test_a_candidate_with_which_a_process_ended_is_not_tried_again(world: World) -> None:
    class Deadly(Fake):
        def compile(self, trial: object) -> None:
            raise Death

    deadly, third = Deadly("new", world.clock), Fake("third", world.clock, costs=always(0.5))
    with pytest.raises(Death):
        Supervisor(world.file, world.clock).choice(operation([world.old, deadly, third]))
    finding = Supervisor(world.file, world.clock).finding(operation([world.old, deadly, third]))
    assert finding.chosen == "third"
    assert finding.verdicts[1].fate is Fate.LOST
    assert world.file.read().trying == {}


def test_a_candidate_with_which_a_process_ended_while_it_was_timed_is_not_tried_again(world: World) -> None:
    class Deadly(Fake):
        def burst(self, trial: object, times: int) -> None:
            raise Death

    deadly, right = Deadly("new", world.clock), Fake("right", world.clock)
    with pytest.raises(Death):
        Supervisor(world.file, world.clock).choice(operation([world.old, deadly, right]))
    finding = Supervisor(world.file, world.clock).finding(operation([world.old, deadly, right]))
    assert [verdict.fate for verdict in finding.verdicts] == [Fate.CHOSEN, Fate.LOST, Fate.SLOWER]


def test_a_process_that_ended_with_the_baseline_blames_nobody(world: World) -> None:
    world.file.tries("sum", "old")
    assert world.chosen() == "new"
    assert [verdict.fate for verdict in world.file.read().findings["sum"].verdicts] == [Fate.SLOWER, Fate.CHOSEN]


def test_trials_that_cannot_be_made_leave_the_baseline_and_no_verdict(world: World) -> None:
    def none() -> list[FakeTrial]:
        raise MemoryError("no room")

    wanted = replace(operation([world.old, world.new]), trials=none)
    finding = Supervisor(world.file, world.clock).finding(wanted)
    assert finding.chosen == "old"
    assert finding.verdicts[1].fate is Fate.UNTRIED
    assert finding.verdicts[1].reason == "MemoryError: no room"
    assert world.file.read().findings == {}
    assert world.chosen() == "new"


def test_a_spot_check_that_cannot_be_made_leaves_the_baseline_for_this_process(world: World) -> None:
    def none() -> list[FakeTrial]:
        raise MemoryError("no room")

    world.chosen()
    wanted = replace(operation([world.old, world.new]), spot=none)
    assert Supervisor(world.file, world.clock).choice(wanted) is world.old
    assert world.chosen() == "new"


def test_verdicts_are_logged_as_they_are_found(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.new.broken = True
    with caplog.at_level(logging.INFO):
        assert world.chosen() == "old"
    assert caplog.messages == [
        "sum: trying kernels on Apple M9",
        "sum: new does not compile: small: RuntimeError: unknown type half5",
    ]


def test_the_cache_is_where_the_system_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "puna"
    for none in ("", "relative/is/to/be/ignored"):
        monkeypatch.setenv("XDG_CACHE_HOME", none)
        monkeypatch.setattr("sys.platform", "linux")
        assert cache_folder() == tmp_path / ".cache" / "puna"
        monkeypatch.setattr("sys.platform", "darwin")
        assert cache_folder() == tmp_path / "Library" / "Caches" / "puna"
