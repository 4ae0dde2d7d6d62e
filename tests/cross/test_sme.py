"""SME: kernels and whole projections in an emulator, its loop under threads, and what its objects consist of."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cross.disassembly import check, functions, inner_loops
from tests.cross.sme_counts import ASSEMBLY, CALLS, MACS, ROWS, Count, K, counted, table, table_of_shares
from tests.cross.sources import objects_of, with_formats
from tests.cross.tools import APPLE_M4, CPU, LINUX, MACOS, ROOT, object_of, ran

HERE = Path(__file__).parent
LOOPS = [CPU / f"{name}.cpp" for name in ("sme_wide", "sme_operands", "sme_units", "portable_matmul", "panels", "pool")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sme")


def linked(driver: str, sources: list[Path], folder: Path) -> Path:
    """A program with the run-time library of C++, which the compiler builds the first time: for a minute or two."""
    own = folder / driver
    own.mkdir()  # a driver may have the name of a source
    options = ["-fexceptions", "-fthreadsafe-statics", with_formats(folder)]
    objects = objects_of(sources, LINUX, options, folder)
    objects += [object_of(source, LINUX, [], folder) for source in ASSEMBLY]
    objects.append(object_of(HERE / f"{driver}.cpp", LINUX, options, own))
    program = own / "program"
    command = [sys.executable, "-m", "ziglang", "c++", "-target", LINUX, "-static", *map(str, objects)]
    command += ["-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    return linked("sme_wide", LOOPS, folder)


def test_kernels_are_chains_of_fma_and_exact_sums_and_keep_what_is_not_theirs(folder: Path) -> None:
    assert ran(linked("sme_kernels", [], folder), cpu=APPLE_M4) == "ok\n"


@pytest.mark.parametrize("threads_and_units", ["1 1", "3 1", "4 2"])
def test_a_projection_has_the_bits_of_the_portable_kernels(threads_and_units: str, wide: Path) -> None:
    assert ran(wide, threads_and_units.split(), cpu=APPLE_M4) == "ok\n"


@pytest.mark.parametrize("cpu", ["max,sve=off,sme256=on", "max,sve=off,sme128=on", "max,sme=off", "cortex-a76"])
def test_other_vector_lengths_and_machines_without_sme_are_refused(cpu: str, wide: Path) -> None:
    assert ran(wide, ["1", "1"], cpu=cpu) == "refused\n"


@pytest.mark.parametrize("sanitizer", [[], ["-fsanitize=thread"]], ids=["plain", "thread-sanitizer"])
def test_a_line_keeps_its_slots_apart_and_blocks_fit_the_cache(sanitizer: list[str], folder: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    program = folder / "line"
    options = ["-std=c++20", "-O1", "-pthread", *sanitizer, f"-I{CPU}", with_formats(folder)]
    built = subprocess.run(
        ["c++", *options, str(HERE / "sme_line.cpp"), "-o", str(program)], capture_output=True, text=True, check=False
    )
    if built.returncode and sanitizer:
        pytest.skip("the compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def check_all(made: Path) -> None:
    found = functions(made)
    assert found
    for name, body in found.items():
        check(name, body)


@pytest.mark.parametrize("target", [LINUX, MACOS])
@pytest.mark.parametrize("source", ASSEMBLY, ids=lambda path: path.name)
def test_objects_hold_only_what_a_cpu_without_sve_and_the_abi_allow(source: Path, target: str, tmp_path: Path) -> None:
    check_all(object_of(source, target, [], tmp_path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("mov x18, x0", "x18"),
        ("bl elsewhere", "not an instruction"),
        ("blr x1", "not an instruction"),
        ("mrs x0, tpidr_el0", "not an instruction"),
        ("fadd v0.4s, v0.4s, v0.4s", "not an instruction"),
        ("ret", "streaming is True"),
        ("smstop\n ptrue p0.b\n smstart", "streaming is False"),
        ("ldp d8, d9, [sp, #16]", "streaming is True"),
        ("smstop\n str x19, [sp, #-16]!\n smstart", "not an instruction"),
    ],
)
def test_the_guard_of_objects_sees_each_trap(line: str, complaint: str, tmp_path: Path) -> None:
    source = tmp_path / "trap.S"
    source.write_text(f'#include "{CPU}/sme_asm.h"\n .globl trap\ntrap:\n enter\n {line}\n leave\n')
    made = object_of(source, LINUX, [], tmp_path)
    with pytest.raises(AssertionError, match=complaint):
        check_all(made)


def test_the_inner_loops_have_one_load_for_each_of_their_outer_products_by_four(tmp_path: Path) -> None:
    for source, product in zip(ASSEMBLY, ("fmopa", "smopa"), strict=True):
        name = f"puna_{source.stem}"
        loop = inner_loops(functions(object_of(source, LINUX, [], tmp_path))[name])[0]
        # Eight steps: a load of four vectors of B for each, one of A for four.
        assert (loop[product], loop["ld1w x4"]) == (32, 10)
        assert loop.total() <= 54


@pytest.fixture(scope="module")
def counts(folder: Path) -> list[Count]:
    return counted(folder)


def test_kernels_execute_the_ideal_number_of_outer_products_and_at_most_as_much_else(counts: list[Count]) -> None:
    for count in counts[: len(CALLS)]:
        # A step of minima serves 128 values of K, and is four products for each 16 rows as a step of two values is.
        minima = count.executed["smops"]
        assert minima == (4 * count.call.option * (ROWS // 16) * (K // 128) if "int16" in count.call.name else 0)
        products = count.executed["fmopa"] + count.executed["smopa"]
        assert products == count.ideal == MACS // count.call.macs_a_product
        assert count.executed.total() < (1.85 if "float32" in count.call.name else 2.2) * products


def test_the_counts_in_the_docs_are_those_of_the_kernels(counts: list[Count]) -> None:
    text = (ROOT / "docs" / "sme.md").read_text()
    assert table(counts) in text
    assert table_of_shares(counts) in text
