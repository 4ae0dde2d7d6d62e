"""Cores: how many threads compute where nobody says, one for each physical core, of the fast ones if they differ."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Set
from pathlib import Path, PurePosixPath

# Of the fastest core's capacity, what a fast one has at least: the best of equal cores may be clocked a little higher,
# and a few large ones stand beside some nearly as large; small ones have half or less.
FAST = 0.75


def default_threads() -> int:
    if sys.platform == "linux":
        return on_linux(Path("/"), os.sched_getaffinity(0))
    if sys.platform == "darwin":
        return on_darwin(_sysctl)
    return os.cpu_count() or 1


def on_linux(root: Path, allowed: Set[int]) -> int:
    """At least one, and never more than the CPUs that we may run on. A file that is missing bounds nothing."""
    cpus = root / "sys/devices/system/cpu"
    here = _fast(root, (allowed & _listed(cpus / "online")) or allowed)
    # Threads of one core share a list of siblings; older kernels know it by its other name.
    topologies = {cpu: cpus / f"cpu{cpu}" / "topology" for cpu in here}
    cores = {
        _read(at / "core_cpus_list") or _read(at / "thread_siblings_list") or str(cpu) for cpu, at in topologies.items()
    }
    return max(1, min([len(cores), *_quotas(root)]))


def on_darwin(sysctl: Callable[[str], int]) -> int:
    """`sysctl` gives 0 for a name that the machine does not know."""
    return sysctl("hw.perflevel0.physicalcpu") or sysctl("hw.physicalcpu") or os.cpu_count() or 1


def _fast(root: Path, cpus: Set[int]) -> Set[int]:
    """Intel's list of large cores, where one has such; elsewhere the kernel's own measure."""
    cpus = (cpus & _listed(root / "sys/devices/cpu_core/cpus")) or cpus
    said = {cpu: _read(root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity") for cpu in cpus}
    capacity = {cpu: int(text) for cpu, text in said.items() if text.isdecimal()}
    most = max(capacity.values(), default=0)
    return {cpu for cpu in cpus if capacity.get(cpu, most) >= FAST * most}


def _quotas(root: Path) -> Iterator[int]:
    """Whole CPUs that each control group above us grants: threads beyond them would be stopped while others wait."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for group in _groups(root / "sys/fs/cgroup", path):
                yield from _whole(*_read(group / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            for mount in {"cpu", controllers}:
                for group in _groups(root / "sys/fs/cgroup" / mount, path):
                    yield from _whole(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """From the group up to the mount. In a container the path may be the host's, and only the mount be there."""
    inner = PurePosixPath(path.lstrip("/"))
    for at in (inner, *inner.parents):
        if ".." not in at.parts:
            yield mount / at


def _whole(quota: str = "", period: str = "") -> Iterator[int]:
    """Nothing where there is no quota: "max" or -1."""
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) // int(period)


def _listed(path: Path) -> Set[int]:
    """As in "0-3,8"."""
    spans = [part.split("-") for part in _read(path).split(",") if part]
    return {cpu for span in spans for cpu in range(int(span[0]), int(span[-1]) + 1)}


def _read(path: Path) -> str:
    """Empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _sysctl(name: str) -> int:
    value = ctypes.c_uint64()
    length = ctypes.c_size_t(8)
    known = ctypes.CDLL(None).sysctlbyname(name.encode(), ctypes.byref(value), ctypes.byref(length), None, 0) == 0
    return value.value if known else 0
