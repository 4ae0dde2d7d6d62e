"""The instructions that SME code may consist of, read from object files: what is not in the table is an error."""

import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

D, N, M, A = 0, 5, 16, 10  # where an instruction names general registers

# name, bits that are fixed, their values, places of general registers, where it may be
_STREAMING, _OUTSIDE, _BOTH = (True,), (False,), (False, True)
_TABLE = (
    ("fmopa", 0xFFE0001C, 0x80800000, (), _STREAMING),
    ("smopa", 0xFFE0001C, 0xA0800008, (), _STREAMING),
    ("smops", 0xFFE0001C, 0xA0800018, (), _STREAMING),
    ("mova", 0xFFFF1C7C, 0xC0840400, (), _STREAMING),
    ("mova", 0xFFFF1F03, 0xC0860400, (), _STREAMING),
    ("zero", 0xFFFFFFFF, 0xC00800FF, (), _STREAMING),
    ("ld1w x4", 0xFFF0E003, 0xA040C000, (N,), _STREAMING),
    ("ld1w x4 strided", 0xFFE0E00C, 0xA100C000, (N, M), _STREAMING),
    ("st1w x4", 0xFFF0E003, 0xA060C000, (N,), _STREAMING),
    ("st1w x2", 0xFFF0E001, 0xA0604000, (N,), _STREAMING),
    ("ld1w", 0xFFF0E000, 0xA540A000, (N,), _STREAMING),
    ("ld1w", 0xFFE0E000, 0xA5404000, (N, M), _STREAMING),
    ("ld1h", 0xFFF0E000, 0xA4C0A000, (N,), _STREAMING),
    ("ld1sb", 0xFFF0E000, 0xA5C0A000, (N,), _STREAMING),
    ("ptrue", 0xFF3FFC10, 0x2518E000, (), _STREAMING),
    ("ptrue pn", 0xFF3FFFF8, 0x25207810, (), _STREAMING),
    ("whilelt pn", 0xFF20FC18, 0x25206410, (N, M), _STREAMING),
    ("fcvt", 0xFFFFE000, 0x6589A000, (), _STREAMING),
    ("lsl", 0xFFFFFC00, 0x04709C00, (), _STREAMING),
    ("uzp1", 0xFFE0FC00, 0x05606800, (), _STREAMING),
    ("rdsvl", 0xFFFFF800, 0x04BF5800, (D,), _BOTH),
    ("smstart", 0xFFFFFFFF, 0xD503477F, (), _OUTSIDE),
    ("smstop", 0xFFFFFFFF, 0xD503467F, (), _STREAMING),
    ("ret", 0xFFFFFFFF, 0xD65F03C0, (), _OUTSIDE),
    ("nop", 0xFFFFFFFF, 0xD503201F, (), _BOTH),
    ("stp d", 0xFE400000, 0x6C000000, (N,), _OUTSIDE),
    ("ldp d", 0xFE400000, 0x6C400000, (N,), _OUTSIDE),
    ("ldp", 0xFFC00000, 0xA9400000, (D, N, A), _BOTH),
    ("str", 0xFFC00000, 0xF9000000, (D, N), _BOTH),
    ("ldr", 0xFFC00000, 0xF9400000, (D, N), _BOTH),
    ("prfm", 0xFFC00000, 0xF9800000, (N,), _BOTH),
    ("b", 0xFC000000, 0x14000000, (), _BOTH),
    ("b.cond", 0xFF000010, 0x54000000, (), _BOTH),
    ("cbz", 0x7F000000, 0x34000000, (D,), _BOTH),
    ("add/sub", 0x1F800000, 0x11000000, (D, N), _BOTH),
    ("add/sub", 0x1F200000, 0x0B000000, (D, N, M), _BOTH),
    ("logic", 0x1F800000, 0x12000000, (D, N), _BOTH),
    ("logic", 0x1F000000, 0x0A000000, (D, N, M), _BOTH),
    ("movz", 0x7F800000, 0x52800000, (D,), _BOTH),
    ("lsr", 0xFFC0FC00, 0xD340FC00, (D, N), _BOTH),
)


@dataclass(frozen=True)
class Instruction:
    name: str
    word: int
    registers: tuple[int, ...]  # general ones
    where: tuple[bool, ...]  # in which states of streaming mode it may be

    def field(self, at: int, bits: int) -> int:
        return self.word >> at & (1 << bits) - 1

    def jump(self) -> int:
        """Instructions from here to where a branch goes."""
        bits, at = (26, 0) if self.name == "b" else (19, 5)
        distance = self.field(at, bits)
        return distance - (1 << bits) if distance >> bits - 1 else distance


def decoded(word: int) -> Instruction:
    for name, mask, value, places, where in _TABLE:
        if word & mask == value:
            return Instruction(name, word, tuple(word >> at & 31 for at in places), where)
    raise AssertionError(f"{word:08x} is not an instruction that SME code may have")


def functions(path: Path) -> dict[str, list[Instruction]]:
    """The global functions of an ELF or Mach-O object, without the underscore that the latter puts before names."""
    data = path.read_bytes()
    text, symbols = _elf(data) if data[:4] == b"\x7fELF" else _mach_o(data)
    starts = sorted(symbols.items(), key=lambda item: item[1])
    ends = [at for _, at in starts[1:]] + [len(text)]
    return {
        name.removeprefix("_"): [decoded(word) for (word,) in struct.iter_unpack("<I", text[at:end])]
        for (name, at), end in zip(starts, ends, strict=True)
    }


def _elf(data: bytes) -> tuple[bytes, dict[str, int]]:
    (at,) = struct.unpack_from("<Q", data, 40)
    size, count, _ = struct.unpack_from("<HHH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(count)]
    code = next(i for i, s in enumerate(sections) if s[1] == 1 and s[2] & 4 and s[5])
    table = next(s for s in sections if s[1] == 2)
    names = sections[table[6]][4]
    symbols = {}
    for i in range(table[4], table[4] + table[5], 24):
        name, info, _, section, value, _ = struct.unpack_from("<IBBHQQ", data, i)
        if info >> 4 == 1 and section == code:
            symbols[_string(data, names + name)] = value
    return data[sections[code][4] : sections[code][4] + sections[code][5]], symbols


def _mach_o(data: bytes) -> tuple[bytes, dict[str, int]]:
    text, symbols = b"", {}
    for command, at in _commands(data):
        if command == 0x19:  # LC_SEGMENT_64, whose first section is the code
            size, offset = struct.unpack_from("<QI", data, at + 72 + 40)
            text = data[offset : offset + size]
        if command == 0x2:  # LC_SYMTAB
            table, count, names, _ = struct.unpack_from("<IIII", data, at + 8)
            for i in range(count):
                name, kind, section, _, value = struct.unpack_from("<IBBHQ", data, table + 16 * i)
                if kind == 0x0F and section == 1:  # defined here, external
                    symbols[_string(data, names + name)] = value
    return text, symbols


def _commands(data: bytes) -> Iterator[tuple[int, int]]:
    (count,) = struct.unpack_from("<I", data, 16)
    at = 32
    for _ in range(count):
        command, size = struct.unpack_from("<II", data, at)
        yield command, at
        at += size


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def check(name: str, body: list[Instruction]) -> None:
    """What the ABI and a machine without SVE ask of a function that enters streaming mode."""
    streaming, stack = False, 0
    saved: dict[int, int] = {}  # where each register of doubles lies, from the stack pointer at entry
    restored: dict[int, int] = {}
    for i, one in enumerate(body):
        here = f"{name} + {4 * i}: {one.name}"
        assert 18 not in one.registers, f"{here}: x18 is the system's"
        assert streaming in one.where, f"{here}: streaming is {streaming}"
        if one.name in ("stp d", "ldp d"):
            mode, offset = one.field(23, 2), (one.field(15, 7) ^ 64) - 64
            assert (mode in (1, 2, 3), one.registers) == (True, (31,)), f"{here}: a form not expected"
            stack += 8 * offset if mode == 3 else 0
            place = stack + (8 * offset if mode == 2 else 0)
            slots = saved if one.name == "stp d" else restored
            slots |= {one.field(0, 5): place, one.field(10, 5): place + 8}
            stack += 8 * offset if mode == 1 else 0
        if one.name == "smstart":
            assert {*range(8, 16)} <= saved.keys(), f"{here}: d8 to d15 are not saved"
            streaming = True
        if one.name == "smstop":
            streaming = False
        if one.name == "ret":
            assert saved == restored, f"{here}: what was saved is not what is restored"
            assert stack == 0, f"{here}: the stack is not where it was"
            assert all(later.name == "nop" for later in body[i + 1 :]), f"{here}: code behind it"
    assert not streaming, f"{name} ends in streaming mode"


def inner_loops(body: list[Instruction]) -> list[Counter[str]]:
    """What the loops consist of in which there is no other loop."""
    back = [(i + one.jump(), i) for i, one in enumerate(body) if one.name in ("b", "b.cond", "cbz") and one.jump() < 0]
    inner = [(a, b) for a, b in back if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in back)]
    return [Counter(one.name for one in body[a : b + 1]) for a, b in inner]
