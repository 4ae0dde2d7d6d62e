"""Laws of tests/on_mac.sh that need no Mac: it says what it does, notes faults and tells no names."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "on_mac.sh"
STEPS = [
    "about",
    "build",
    "gpu",
    "tests",
    "engine",
    "kernels",
    "verdicts",
    "sme",
    "devices",
    "bench",
    "buffers",
    "contention",
    "llama",
    "mlx-lm",
    "service",
]


def ran(folder: Path, *arguments: str, said: str = "", **programs: str) -> subprocess.CompletedProcess[str]:
    """With programs of these names, each a line of shell, before those of the machine."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, line in {"hostname": "echo Sabines-MacBook.local", **programs}.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(home), "USER": "sabine"}
    environment |= {"TMPDIR": str(folder)}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, input=said, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_dry_run_names_every_step_and_does_nothing(tmp_path: Path) -> None:
    done = ran(tmp_path, "--dry-run", "--out", str(tmp_path / "report"), make="touch made")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^([a-z-]+): ", done.stdout, re.MULTILINE) == STEPS
    assert {path.name for path in tmp_path.iterdir()} == {"tools", "home"}


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac leaves nothing out")
def test_what_needs_a_mac_is_left_out_elsewhere_and_said_so(tmp_path: Path) -> None:
    said = ran(tmp_path, "--dry-run").stdout
    for name in ("kernels", "verdicts", "sme", "buffers", "service"):
        assert re.search(rf"^{name}: left out: .*; this is no Mac$", said, re.MULTILINE)


def test_on_a_mac_a_dry_run_shows_the_commands(tmp_path: Path) -> None:
    said = ran(
        tmp_path, "--dry-run", "--llama", "/peer", "--mlx-lm", "py", "--mlx-model", "m", uname="echo Darwin"
    ).stdout
    assert "left out" not in said
    for command in (
        "make build",
        "MLX_ENABLE_TF32=0 make test",
        "kernels --retune",
        'service install "$model" --port "$PORT"',
        "service remove",
        "tests.peers.speed",
        "mlx_lm.benchmark",
        "PUNA_CPU=sme",
        "--prefill cpu",
    ):
        assert command in said


def test_a_step_that_fails_is_noted_and_counted(tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = ran(tmp_path, "--only", "build", "--out", str(report), make="echo no compiler >&2; exit 3")
    assert done.returncode == 1
    text = report.read_text()
    assert re.search(r"^build +FAILED \(3\)$", text, re.MULTILINE)
    assert "no compiler" in text
    assert "-- exit code 3 after" in text


def test_the_report_tells_no_names(tmp_path: Path) -> None:
    report, model = tmp_path / "report", tmp_path / "home" / "secret models" / "m.gguf"
    told = f"echo {ROOT}/engine '{model}' $HOME/x $TMPDIR/y /private/sabine/z; hostname; exit 0"
    done = ran(tmp_path, "--only", "build", "--model", str(model), "--out", str(report), make=told)
    assert done.returncode == 0
    text = report.read_text()
    assert "puna/engine .../m.gguf ~/x tmp/y /private/user/z\nhost\n" in text
    assert not re.search(rf"sabine|Sabine|secret|{re.escape(str(tmp_path))}|{re.escape(str(ROOT))}", text)


def test_paths_are_those_of_where_one_stands(tmp_path: Path) -> None:
    said = f"{tmp_path}/mine/m.gguf {tmp_path}/peers/bin/llama-bench\n"
    done = ran(tmp_path, "--redact", "--model", "mine/m.gguf", "--llama", "peers/bin", said=said)
    assert done.stdout == ".../m.gguf .../bin/llama-bench\n"


@pytest.mark.parametrize("line", ["", "a\\b & c | [d]* $e", "ümläut", "tab\there"])
def test_other_lines_stay_as_they_are(line: str, tmp_path: Path) -> None:
    assert ran(tmp_path, "--redact", said=f"{line}\n{line}\n").stdout == f"{line}\n{line}\n"


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--model"], ["--out", ""]])
def test_options_that_make_no_sense_are_refused(arguments: list[str], tmp_path: Path) -> None:
    done = ran(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_it_says_how_it_is_used(tmp_path: Path) -> None:
    done = ran(tmp_path, "--help")
    assert done.returncode == 0
    for option in re.findall(r"^    (--[a-z-]+)\)", SCRIPT.read_text(), re.MULTILINE):
        assert option in done.stdout or option == "--redact"
