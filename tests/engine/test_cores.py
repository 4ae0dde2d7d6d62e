"""Laws of the default number of threads, on made-up machines: physical cores, the fast ones, within what we may use."""

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from engine.cores import default_threads, on_darwin, on_linux

Files = dict[str, object]  # texts by their paths

CPUS = "sys/devices/system/cpu"


def write(root: Path, files: Files) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def siblings(*groups: Iterable[int], name: str = "core_cpus_list") -> Files:
    lists = [list(group) for group in groups]
    return {f"{CPUS}/cpu{cpu}/topology/{name}": ",".join(map(str, each)) for each in lists for cpu in each}


def capacities(*values: int) -> Files:
    return {f"{CPUS}/cpu{cpu}/cpu_capacity": value for cpu, value in enumerate(values)}


PLAIN = siblings(*([cpu] for cpu in range(8)))
SMT = siblings(*([cpu, cpu + 4] for cpu in range(4)))  # four cores of two threads
INTEL = siblings([0, 1], [2, 3], [4], [5], [6], [7]) | {"sys/devices/cpu_core/cpus": "0-3"}  # two large, four small
ARM = siblings(*([cpu] for cpu in range(8))) | capacities(414, 414, 414, 414, 1024, 1024, 1024, 1024)
V2: Files = {"proc/self/cgroup": "0::/apps/puna"}
V1: Files = {"proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n0::/"}


@pytest.mark.parametrize(
    ("files", "allowed", "threads"),
    [
        pytest.param(PLAIN, range(8), 8, id="cores"),
        pytest.param(SMT, range(8), 4, id="smt"),
        pytest.param(siblings([0, 2], [1, 3], name="thread_siblings_list"), range(4), 2, id="smt-of-old-kernels"),
        pytest.param(INTEL, range(8), 2, id="intel-hybrid"),
        pytest.param(INTEL, range(4, 8), 4, id="intel-small-ones-alone"),
        pytest.param(ARM, range(8), 4, id="arm-big-little"),
        pytest.param(ARM, range(4), 4, id="arm-little-ones-alone"),
        pytest.param(PLAIN | capacities(350, 350, 800, 800, 1024), range(5), 3, id="arm-one-larger-still"),
        pytest.param(PLAIN | capacities(1024, 1010), range(4), 4, id="arm-capacity-not-said-of-all"),
        pytest.param(SMT, {0, 4}, 1, id="one-core-allowed"),
        pytest.param(SMT, {0, 1, 5}, 2, id="some-threads-allowed"),
        pytest.param(SMT | {f"{CPUS}/online": "0-1,4-5"}, range(8), 2, id="offline"),
        pytest.param({f"{CPUS}/online": "0-2"}, range(8), 3, id="offline-without-topology"),
        pytest.param({}, range(6), 6, id="nothing-said"),
        pytest.param({}, {17}, 1, id="one"),
    ],
)
def test_threads_are_the_fast_physical_cores(
    files: Files, allowed: Iterable[int], threads: int, tmp_path: Path
) -> None:
    assert on_linux(write(tmp_path, files), set(allowed)) == threads


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        pytest.param(V2 | {"sys/fs/cgroup/apps/puna/cpu.max": "300000 100000"}, 3, id="ours"),
        pytest.param(V2 | {"sys/fs/cgroup/apps/cpu.max": "200000 100000"}, 2, id="above-us"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "100000 50000"}, 2, id="of-a-container"),
        pytest.param(
            V2 | {"sys/fs/cgroup/cpu.max": "max 100000", "sys/fs/cgroup/apps/puna/cpu.max": "max 100000"}, 8, id="none"
        ),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "399999 100000"}, 3, id="no-part-of-a-cpu"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "20000 100000"}, 1, id="less-than-one"),
        pytest.param(V2 | {"sys/fs/cgroup/cpu.max": "9900000 100000"}, 8, id="more-than-there-are"),
        pytest.param(
            {"proc/self/cgroup": "0::/../other", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2, id="outside-of-ours"
        ),
        pytest.param(
            V1 | {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": 250000, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": 100000},
            2,
            id="old",
        ),
        pytest.param(
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": 300000,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
            },
            3,
            id="old-of-a-container",
        ),
        pytest.param(
            V1 | {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": 100000},
            8,
            id="old-none",
        ),
    ],
)
def test_a_quota_bounds_them(files: Files, threads: int, tmp_path: Path) -> None:
    assert on_linux(write(tmp_path, PLAIN | files), set(range(8))) == threads


@pytest.mark.parametrize("seed", range(20))
def test_never_more_than_we_may_use_and_never_none(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    quota = V2 | {"sys/fs/cgroup/cpu.max": "150000 100000"}
    trees: list[Files] = [PLAIN, SMT, INTEL, ARM, {f"{CPUS}/online": "6-7"}, quota]
    for files in rng.sample(trees, rng.randint(1, 4)):
        write(tmp_path, files)
    allowed = set(rng.sample(range(12), rng.randint(1, 12)))
    assert 1 <= on_linux(tmp_path, allowed) <= len(allowed)


def test_on_a_mac_they_are_the_performance_cores() -> None:
    m4 = {"hw.perflevel0.physicalcpu": 4, "hw.perflevel1.physicalcpu": 6, "hw.physicalcpu": 10}
    assert on_darwin(lambda name: m4.get(name, 0)) == 4
    assert on_darwin(lambda name: {"hw.physicalcpu": 6}.get(name, 0)) == 6
    assert on_darwin(lambda name: 0) == os.cpu_count()


def test_this_machine_has_some() -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_the_kernels_start_with_no_more_threads_than_they_may_run_on() -> None:
    """In a process of its own, bound to one CPU."""
    program = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from engine.load import start_cpu
start_cpu(None)
from engine import _native
print(_native.threads())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1\n"
