"""Laws of `puna bench`: what it prints of a report, and that a tiny model is measured from end to end."""

import json
from pathlib import Path

import msgspec
import pytest

from engine.bench_report import Line, Machine, Report
from engine.chips import BANDWIDTHS
from server.bench import table
from server.cli import run
from tests.tiny_models import write_gguf, write_mlx

LINES = ["prefill 128", "decode", "decode x8", "decode x16", "prefill 1020", "decode at 1020"]
RATES = {"name", "sequences", "context", "tokens", "bursts", "unsteady", "median", "best", "worst"}
ROOFLINE = {"roofline", "share", "limit"}

MACHINE = Machine(read_median=30e9, read_best=36e9, int8_peak=9e11, fp32_peak=2e11, chip=None, published_bandwidth=None)
SHARE = {"roofline": 40.0, "share": 0.625, "limit": "memory"}
MEASURED = Line(
    name="decode", sequences=1, context=128, tokens=16, bursts=4, unsteady=0, median=25.0, best=26.0, worst=24.0
)


def report(machine: Machine, *lines: Line) -> Report:
    return Report(
        model="llama", weight_bytes=800_000_000, device="cpu", kernels="avx512", threads=2, machine=machine, lines=lines
    )


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["bench", "--quick", *arguments]) == 0
    return capsys.readouterr().out


def test_a_model_is_measured_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path, "llama", kind="q4_k", context=1024)
    found = json.loads(printed([str(path), "--device", "cpu", "--threads", "2", "--json"], capsys))
    assert {"model", "weight_bytes", "device", "kernels", "threads", "machine", "lines"} <= found.keys()
    assert (found["device"], found["threads"]) == ("cpu", 2)
    assert min(found["machine"][name] for name in ("read_median", "read_best", "int8_peak", "fp32_peak")) > 0
    assert [line["name"] for line in found["lines"]] == LINES
    for line in found["lines"]:
        assert line.keys() == RATES | ROOFLINE | {f"published_{name}" for name in ROOFLINE}
        assert 0 < line["worst"] <= line["median"] <= line["best"]
        assert line["share"] == pytest.approx(line["median"] / line["roofline"])


def test_mlxs_own_kernels_are_measured_against_memory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_mlx(tmp_path, "qwen3", bits=4, context=256)
    out = printed([str(path), "--device", "builtin"], capsys)
    assert "decode at 252" in out
    assert "int8" not in out
    assert "arithmetic" not in out


def test_a_file_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "nothing.gguf", tmp_path):
        assert run(["bench", str(path)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"puna: {path}: ")
        assert err.count("\n") == 1


def test_columns_are_aligned_and_shares_are_per_cent() -> None:
    lines = list(table(report(MACHINE, MEASURED, msgspec.structs.replace(MEASURED, **SHARE))))
    assert lines[0] == "llama: 800 MB a token; cpu, avx512, 2 threads"
    assert lines[1] == "memory      30.0 GB/s read, best 36.0"
    assert lines[-2].split() == ["decode", "25.0", "24.0", "26.0", "-", "-", "-"]
    assert lines[-1].split() == ["decode", "25.0", "24.0", "26.0", "40.0", "62%", "memory"]
    assert {line.index("25.0") for line in lines[-2:]} == {lines[-1].index("25.0")}


def test_bursts_that_count_for_no_share_are_counted_below_the_table() -> None:
    lines = list(table(report(MACHINE, MEASURED, msgspec.structs.replace(MEASURED, name="long", unsteady=3))))
    assert lines[-2] == ""
    assert lines[-1].endswith(": long 3 of 4.")


def test_a_chip_of_apples_has_the_published_roofline_too() -> None:
    machine = Machine(
        read_median=90e9, read_best=99e9, int8_peak=1e12, fp32_peak=2e11, chip="Apple M4", published_bandwidth=120e9
    )
    line = Line(
        name="decode",
        sequences=1,
        context=128,
        tokens=16,
        bursts=4,
        unsteady=0,
        median=100.0,
        best=100.0,
        worst=100.0,
        roofline=112.5,
        share=100 / 112.5,
        limit="memory",
        published_roofline=150.0,
        published_share=100 / 150,
        published_limit="memory",
    )
    lines = list(table(report(machine, line)))
    assert "Apple M4: 120 GB/s published" in lines
    assert lines[-1].split()[-3:] == ["150.0", "67%", "memory"]
    assert BANDWIDTHS["Apple M4"] == 120e9
