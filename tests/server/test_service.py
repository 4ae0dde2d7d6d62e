"""Laws of the service files: what launchd and systemd are told."""

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from quant.errors import PunaError
from server.cli import GRACE, run
from server.launchd import LaunchAgent
from server.service_plan import Service
from server.systemd import SystemdUnit


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A console script beside the interpreter, as an installation has it."""
    script = tmp_path / "bin 100%" / "puna"
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    return script


KV = ["--kv-format", "q8", "--kv-memory", "3G", "--kv-disk", "cold", "--queue-time", "2.5"]


def planned(root: Path) -> Service:
    return Service.of(["model.gguf", "--port", "1"], 30.0, root)


def test_a_launch_agent_has_the_keys_that_it_needs(tmp_path: Path, program: Path) -> None:
    agent = LaunchAgent(planned(tmp_path))
    told = plistlib.loads(agent.write().read_bytes())
    assert agent.file == tmp_path / "Library/LaunchAgents/dev.puna.server.plist"
    assert told["ProgramArguments"][:5] == [str(program), "serve", "model.gguf", "--port", "1"]
    assert told["KeepAlive"] == {"SuccessfulExit": False}
    assert told["RunAtLoad"] is True
    assert told["ProcessType"] == "Interactive"
    assert told["ExitTimeOut"] > GRACE
    assert told["SoftResourceLimits"]["NumberOfFiles"] >= 8192
    assert Path(told["ProgramArguments"][0]).is_absolute()
    assert "EnvironmentVariables" not in told


def test_a_unit_waits_longer_than_the_grace_and_signals_the_server_alone(tmp_path: Path) -> None:
    lines = SystemdUnit(planned(tmp_path)).text().splitlines()
    assert "TimeoutStopSec=45" in lines
    assert "KillMode=mixed" in lines
    assert "Restart=on-failure" in lines


def test_a_units_words_stand_for_themselves(tmp_path: Path, program: Path) -> None:
    text = SystemdUnit(Service.of(['a "b" $HOME %h'], 1, tmp_path)).text()
    quoted = str(program).replace("%", "%%")
    assert f'ExecStart="{quoted}" "serve" "a \\"b\\" $$HOME %%h" "--log-file"' in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_unit(tmp_path: Path, program: Path) -> None:
    program.chmod(0o755)
    file = SystemdUnit(planned(tmp_path)).write()
    # Without a folder for its sockets the command gives up before it looks at the unit.
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    verify = ["systemd-analyze", "verify", "--user", str(file)]
    done = subprocess.run(verify, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    file.write_text(file.read_text().replace("ExecStart=", "ExecStart=nowhere"))
    assert subprocess.run(verify, env=environment, capture_output=True, check=False).returncode != 0


def test_install_status_logs_and_remove_below_a_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--root", str(tmp_path)]
    assert run(["service", "install", "model.gguf", "--ctx", "512", "--allow-host", "a", *KV, *root]) == 0
    file = Path(capsys.readouterr().out.removeprefix("wrote ").strip())
    assert file.is_relative_to(tmp_path)
    text = file.read_text()
    absolute = [str(Path("model.gguf").resolve()), str(Path("cold").resolve())]
    sizes = [str(3 * 2**30), str(10 * 2**30)]
    for word in (*absolute, *sizes, "--ctx", "512", "--allow-host", "--log-file", "q8", "--queue-time", "2.5"):
        assert word in text
    assert run(["service", "status", *root]) == 0
    assert capsys.readouterr().out == f"{file}: installed\n"
    Service.of([], 0, tmp_path).log.write_text("".join(f"line {i}\n" for i in range(100)))
    assert run(["service", "logs", *root]) == 0
    assert capsys.readouterr().out.splitlines() == [f"line {i}" for i in range(50, 100)]
    assert run(["service", "remove", *root]) == 0
    assert not file.exists()
    assert run(["service", "status", *root]) == 1
    assert "not installed" in capsys.readouterr().err


def test_a_manager_that_is_not_there_is_said_with_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(command: list[str]) -> str:
        raise PunaError(f"{command[0]}: no bus")

    monkeypatch.setattr("server.systemd.told", absent)
    with pytest.raises(PunaError, match=r"no bus.*systemctl --user daemon-reload; .*restart puna\.service"):
        SystemdUnit(planned(tmp_path)).start()


def test_a_program_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PunaError, match="not installed"):
        Service.of([], 1, tmp_path)
