"""`puna service`: the server as a launchd agent on macOS, as a systemd user unit on Linux."""

import sys
from collections import deque
from pathlib import Path

from quant.errors import PunaError
from server.launchd import LaunchAgent
from server.service_plan import Service
from server.systemd import SystemdUnit

LAST_LINES = 50


def install(arguments: list[str], grace: float, root: Path | None) -> None:
    """The service is written, and runs, now and from each login on. With a root it is only written, below it."""
    service = Service.of(arguments, grace, root)
    service.log.parent.mkdir(parents=True, exist_ok=True)
    keeper = _keeper(service)
    print(f"wrote {keeper.write()}")
    if root is None:
        keeper.start()
        print(f"started; it logs to {service.log}")


def status(root: Path | None) -> None:
    keeper = _installed(root)
    print(f"{keeper.file}: {'installed' if root is not None else keeper.state()}")


def logs(root: Path | None) -> None:
    """The last lines of the service's log."""
    log = Service.of([], 0, root).log
    if not log.exists():
        raise PunaError(f"{log}: there is no log yet")
    with log.open(encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(deque(lines, LAST_LINES))


def remove(root: Path | None) -> None:
    """The service is stopped and its file gone; its log stays."""
    keeper = _installed(root)
    if root is None:
        keeper.stop()
    keeper.file.unlink()
    print(f"removed {keeper.file}")


def _keeper(service: Service) -> LaunchAgent | SystemdUnit:
    return LaunchAgent(service) if sys.platform == "darwin" else SystemdUnit(service)


def _installed(root: Path | None) -> LaunchAgent | SystemdUnit:
    keeper = _keeper(Service.of([], 0, root))
    if not keeper.file.exists():
        raise PunaError(f"{keeper.file}: not installed; see `puna service install`")
    return keeper
