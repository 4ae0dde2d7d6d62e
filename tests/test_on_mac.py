"""Laws of tests/on_mac.sh that need no Mac: it says what it does, notes faults and tells no names."""

import os
import re
import signal
import subprocess
import sys
import time
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
    "sme",
    "devices",
    "bench",
    "buffers",
    "verdicts",
    "contention",
    "llama",
    "mlx-lm",
    "service",
]


def started(folder: Path, *arguments: str, script: Path = SCRIPT, **programs: str) -> subprocess.Popen[str]:
    """With programs of these names, each a line of shell, before those of the machine."""
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    for name, line in {"hostname": "echo Sabines-MacBook.local", "caffeinate": "exit 0", **programs}.items():
        (tools / name).write_text(f"#!/bin/sh\n{line}\n")
        (tools / name).chmod(0o755)
    home = folder / "home"
    home.mkdir(exist_ok=True)
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(home), "USER": "sabine"}
    environment |= {"TMPDIR": str(folder)}
    return subprocess.Popen(
        ["bash", str(script), *arguments],
        env=environment,
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ran(
    folder: Path, *arguments: str, said: str = "", script: Path = SCRIPT, **programs: str
) -> subprocess.CompletedProcess[str]:
    process = started(folder, *arguments, script=script, **programs)
    out, errors = process.communicate(said, timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


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


def test_a_name_is_taken_out_wherever_it_is_a_word(tmp_path: Path) -> None:
    """And so is what a folder is called when links are followed, as Python says it."""
    real = tmp_path / "volumes" / "data"
    real.mkdir(parents=True)
    (tmp_path / "models").symlink_to(real)
    said = f"pytest-of-sabine/x user=sabine. sabinesque {tmp_path}/models/m.gguf {real}/m.gguf\n"
    done = ran(tmp_path, "--redact", "--model", "models/m.gguf", said=said)
    assert done.stdout == "pytest-of-user/x user=user. sabinesque .../m.gguf .../m.gguf\n"


def test_bytes_that_are_no_text_pass(tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = ran(tmp_path, "--only", "build", "--out", str(report), make="printf 'a\\377b /root/sabine\\n'")
    assert done.returncode == 0
    assert b"a\xffb /root/user\n" in report.read_bytes()


def test_files_that_nobody_added_are_not_named(tmp_path: Path) -> None:
    report = tmp_path / "report"
    ran(tmp_path, "--only", "about", "--out", str(report), git='echo "$@"')
    assert "status --short --untracked-files=no" in report.read_text()


def test_an_interrupted_step_is_noted_and_the_report_is_written(tmp_path: Path) -> None:
    report = tmp_path / "report"
    process = started(tmp_path, "--only", "build", "--out", str(report), make=f"touch {tmp_path}/begun; sleep 60")
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "on to the next step" in said
    assert re.search(r"^build +FAILED \(130\)$", report.read_text(), re.MULTILINE)
    assert not list(tmp_path.glob("tmp.*"))


def test_nothing_more_is_tried_where_nothing_was_built(tmp_path: Path) -> None:
    report = tmp_path / "report"
    done = ran(tmp_path, "--out", str(report), make="exit 2")
    assert done.returncode == 1
    assert "tests: left out: linters, types and every test; nothing was built" in report.read_text()
    assert "== tests" not in report.read_text()


def test_a_report_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    done = ran(tmp_path, "--out", str(tmp_path / "none" / "report"), make="touch made")
    assert done.returncode == 2
    assert not (tmp_path / "made").exists()


def test_a_step_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = ran(tmp_path, "--only", "everything", "--out", str(tmp_path / "report"))
    assert done.returncode == 2
    assert "everything: no such step" in done.stderr


def test_nothing_is_left_of_a_service_whose_step_was_interrupted(tmp_path: Path) -> None:
    """By a stand-in for puna: whatever ends the script after an install, a removal follows."""
    script = tmp_path / "repo" / "tests" / "on_mac.sh"
    script.parent.mkdir(parents=True)
    script.write_text(SCRIPT.read_text())
    puna = tmp_path / "repo" / ".venv" / "bin" / "puna"
    puna.parent.mkdir(parents=True)
    lines = ("#!/bin/sh", f'echo "$2" >> {tmp_path}/asked', "[ $2 = status ] && exit 1")
    puna.write_text("\n".join([*lines, "[ $2 = install ] && kill -TERM $PPID", "exit 0", ""]))
    puna.chmod(0o755)
    ran(tmp_path, "--only", "service", "--out", str(tmp_path / "report"), script=script, uname="echo Darwin")
    assert (tmp_path / "asked").read_text().split()[:3] == ["status", "install", "remove"]


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
