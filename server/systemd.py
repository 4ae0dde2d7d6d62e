"""The service as a systemd user unit: a file, and systemctl --user."""

from pathlib import Path

from quant.errors import PunaError
from server.service_plan import NAME, Service, told

UNIT = f"{NAME}.service"

_TEMPLATE = """\
[Unit]
Description=Puna, a local LLM inference server

[Service]
ExecStart={command}
# A server that was told to leave exits with 0 and stays away; one that died comes back.
Restart=on-failure
RestartSec=10
TimeoutStopSec={patience}
# The engines leave when the server does; a signal to them would cut its last answers off.
KillMode=mixed
LimitNOFILE=8192
UMask=0077
NoNewPrivileges=true

[Install]
WantedBy=default.target
"""


class SystemdUnit:
    def __init__(self, service: Service) -> None:
        self._service = service
        self.file = service.top / ".config" / "systemd" / "user" / UNIT

    def text(self) -> str:
        command = " ".join(_quoted(word) for word in self._service.command)
        return _TEMPLATE.format(command=command, patience=self._service.patience)

    def write(self) -> Path:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(self.text(), encoding="utf-8")
        return self.file

    def start(self) -> None:
        commands = (["daemon-reload"], ["enable", UNIT], ["restart", UNIT])
        try:
            for command in commands:
                told(["systemctl", "--user", *command])
        except PunaError as error:
            later = "; ".join(f"systemctl --user {' '.join(command)}" for command in commands)
            raise PunaError(
                f"the unit is written and not started ({error}); when you are logged in, run: {later}"
            ) from error

    def stop(self) -> None:
        told(["systemctl", "--user", "disable", "--now", UNIT])

    def state(self) -> str:
        properties = told(["systemctl", "--user", "show", UNIT, "--property=ActiveState", "--value"])
        return properties.strip()


def _quoted(word: str) -> str:
    """A word of a command line as systemd reads it: quotes, specifiers and variables stand for themselves."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
