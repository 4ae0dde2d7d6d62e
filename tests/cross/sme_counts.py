"""How many instructions the SME kernels execute for their multiply-accumulates, and what share of an M4's peak follows:
`python -m tests.cross.sme_counts` prints the tables of docs/sme.md.
"""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.cross.disassembly import Instruction, functions
from tests.cross.sources import with_formats
from tests.cross.tools import APPLE_M4, CPU, LINUX, compiled, object_of, require_emulator, traced

DRIVER = Path(__file__).with_name("sme_counts.cpp")
ASSEMBLY = [CPU / "sme_f32.S", CPU / "sme_i16.S"]

# One call, as a pass of 512 tokens has them: 512 rows by 64 columns over 1,024 values of K.
ROWS, COLUMNS, K = 512, 64, 1024
MACS = ROWS * COLUMNS * K

_CLASSES = (
    ("products", ("fmopa", "smopa", "smops")),
    ("loads", ("ld1w x4", "ld1w x4 strided", "ld1w", "ld1h", "ld1sb")),
    ("moves of ZA", ("mova", "zero")),
    ("stores", ("st1w x4", "st1w x2")),
    ("other vector", ("fcvt", "lsl", "uzp1", "ptrue", "ptrue pn", "whilelt pn")),
    ("prefetches", ("prfm",)),
)


@dataclass(frozen=True)
class Call:
    name: str  # of what it does
    kernel: str
    option: int  # float32: whether it goes on with sums of before; int16: steps of minima for 128 values
    macs_a_product: int  # the ideal: 16 x 16 outputs, a value of K each or two


CALLS = (
    Call("float32", "puna_sme_f32", 0, 256),
    Call("float32, going on", "puna_sme_f32", 1, 256),
    Call("float32 from f32 panels", "puna_sme_f32_first_f32", 0, 256),
    Call("float32 from f16 panels", "puna_sme_f32_first_f16", 0, 256),
    Call("float32 from bf16 panels", "puna_sme_f32_first_bf16", 0, 256),
    Call("int16, no minima", "puna_sme_i16", 0, 512),
    Call("int16, minima of 32", "puna_sme_i16", 2, 512),
    Call("int16, minima of 16", "puna_sme_i16", 4, 512),
)
PACKS = (Call("packing float32 rows", "puna_sme_f32_pack", 0, 0), Call("packing int8 rows", "puna_sme_i16_pack", 0, 0))


@dataclass(frozen=True)
class Count:
    """What one call executed."""

    call: Call
    executed: Counter[str]

    @property
    def classes(self) -> dict[str, int]:
        found = {name: sum(self.executed[one] for one in members) for name, members in _CLASSES}
        return found | {"scalar": self.executed.total() - sum(found.values())}

    @property
    def ideal(self) -> int:
        return MACS // self.call.macs_a_product


def counted(folder: Path) -> list[Count]:
    """Every kernel's call, in the emulator, and packing of 16 rows."""
    require_emulator()
    bodies: dict[str, list[Instruction]] = {}
    objects = [object_of(DRIVER, LINUX, [with_formats(folder)], folder)]
    for source in ASSEMBLY:
        objects.append(object_of(source, LINUX, [], folder))
        bodies |= functions(objects[-1])
    program = compiled(objects, LINUX, [], folder)

    def count(call: Call) -> Count:
        printed, trace = traced(program, [call.kernel, str(ROWS), str(K), str(call.option)], APPLE_M4, folder)
        start, body = int(printed, 16), bodies[call.kernel]
        inside = ((at - start) // 4 for at in trace if start <= at < start + 4 * len(body))
        return Count(call, Counter(body[i].name for i in inside))

    return [count(call) for call in (*CALLS, *PACKS)]


def table(counts: list[Count]) -> str:
    names = [name for name, _ in _CLASSES] + ["scalar"]
    lines = [f"| | {' | '.join(names)} | all | MACs an instruction | products of all | of ideal |"]
    lines.append("|---" * (len(names) + 5) + "|")
    for count in counts:
        cells = [f"{n:,}" for n in (*count.classes.values(), count.executed.total())]
        if count.call in CALLS:
            total, products = count.executed.total(), count.classes["products"]
            cells += [f"{MACS / total:.0f}", f"{100 * products / total:.1f} %", f"{100 * count.ideal / products:.1f} %"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {count.call.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


# Cycles of an M4's unit, and how much of all but the products it does not do beside them: docs/sme.md says from where.
PRODUCT_CYCLES = {256: 1.0, 512: 2.0}
CYCLES = {"ld1w x4": 1.0, "ld1w": 0.54, "ld1h": 0.54, "mova": 4.0, "st1w x4": 4.0, "fcvt": 4.0, "lsl": 4.0}
VISIBLE = 0.38


def shares(count: Count) -> tuple[float, float, float]:
    """Of the peak: if all else is done beside the products, if a part is, if nothing is."""
    cycles = PRODUCT_CYCLES[count.call.macs_a_product]
    ideal, products = cycles * count.ideal, cycles * count.classes["products"]
    rest = sum(cost * count.executed[name] for name, cost in CYCLES.items())
    return ideal / products, ideal / (products + VISIBLE * rest), ideal / (products + rest)


def table_of_shares(counts: list[Count]) -> str:
    lines = ["| | all beside the products | expected | one after the other |", "|---|---|---|---|"]
    for count in counts[: len(CALLS)]:
        lines.append(f"| {count.call.name} | " + " | ".join(f"{100 * share:.0f} %" for share in shares(count)) + " |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        counts = counted(Path(folder))
    print(table(counts), table_of_shares(counts), sep="\n\n")


if __name__ == "__main__":
    main()
