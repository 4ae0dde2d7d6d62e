"""The service as a LaunchAgent: a property list, and launchctl."""

import os
import plistlib
from pathlib import Path

from quant.errors import PunaError
from server.service_plan import Service, told

LABEL = "dev.puna.server"
OPEN_FILES = 8192  # launchd's own limit is 256, and each connection is one


class LaunchAgent:
    def __init__(self, service: Service) -> None:
        self._service = service
        self.file = service.top / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        self._domain = f"gui/{os.getuid()}"

    def properties(self) -> dict[str, object]:
        service = self._service
        return {
            "Label": LABEL,
            "ProgramArguments": service.command,
            "RunAtLoad": True,
            # A server that was told to leave exits with 0 and stays away; one that died comes back.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 10,
            "ExitTimeOut": service.patience,
            "ProcessType": "Interactive",  # anything less is throttled in CPU and in reading the model
            "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
            "HardResourceLimits": {"NumberOfFiles": OPEN_FILES},
            "WorkingDirectory": str(service.top),
            "Umask": 0o077,
            # The server turns its own log over. This takes what it cannot write: an interpreter that does not start.
            "StandardErrorPath": str(service.log.with_suffix(".err")),
        }

    def write(self) -> Path:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(plistlib.dumps(self.properties()))
        return self.file

    def start(self) -> None:
        """Whatever ran under this label before is replaced."""
        if self._loaded():
            self.stop()
        told(["launchctl", "bootstrap", self._domain, str(self.file)])

    def stop(self) -> None:
        if self._loaded():
            told(["launchctl", "bootout", f"{self._domain}/{LABEL}"])

    def state(self) -> str:
        for line in told(["launchctl", "print", f"{self._domain}/{LABEL}"]).splitlines():
            name, _, value = line.strip().partition(" = ")
            if name == "state":
                return value
        return "unknown"

    def _loaded(self) -> bool:
        try:
            told(["launchctl", "print", f"{self._domain}/{LABEL}"])
        except PunaError:
            return False
        return True
