"""Chips: the memory bandwidth that Apple publishes for each of its own, and which one and how much memory we have."""

import ctypes
import sys

# Bytes a second of each chip's largest version, from Apple's technical specifications.
BANDWIDTHS = {
    f"Apple {name}": gigabytes * 1e9
    for name, gigabytes in {
        "M1": 68,
        "M1 Pro": 200,
        "M1 Max": 400,
        "M1 Ultra": 800,
        "M2": 100,
        "M2 Pro": 200,
        "M2 Max": 400,
        "M2 Ultra": 800,
        "M3": 100,
        "M3 Pro": 150,
        "M3 Max": 400,
        "M3 Ultra": 819,
        "M4": 120,
        "M4 Pro": 273,
        "M4 Max": 546,
        "M5": 154,
        "M5 Pro": 307,
        "M5 Max": 614,
    }.items()
}


def machine_memory() -> int:
    """Bytes that a Mac has; 0 on other machines, and where it does not say."""
    if sys.platform != "darwin":
        return 0
    size = ctypes.c_uint64()
    length = ctypes.c_size_t(8)
    said = ctypes.CDLL(None).sysctlbyname(b"hw.memsize", ctypes.byref(size), ctypes.byref(length), None, 0) == 0
    return size.value if said else 0


def chip() -> str | None:
    """Its brand, as `sysctl -n machdep.cpu.brand_string` says; None where there is no such name."""
    if sys.platform != "darwin":
        return None
    text = ctypes.create_string_buffer(128)
    length = ctypes.c_size_t(len(text))
    name = b"machdep.cpu.brand_string"
    if ctypes.CDLL(None).sysctlbyname(name, text, ctypes.byref(length), None, 0) != 0:
        return None
    return text.value.decode(errors="replace")
