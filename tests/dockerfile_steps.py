"""Runs the Dockerfile's steps where no Docker engine is: each stage in a fresh Debian of its own, then the command.

Usage (as root, with debootstrap): python tests/dockerfile_steps.py [--bind FOLDER ...] [--port N] [--base FOLDER]
The host's apt and pip settings are carried into the stages, and folders that those name are bound by --bind. Prints
what the served model answers over HTTP, and ends with the exit code of the stopped server.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RELEASE = "bookworm"
SETTINGS = ("/etc/apt", "/etc/ssl", "/usr/share/keyrings", "/usr/local/share/ca-certificates", "/etc/pip.conf")


def steps(dockerfile: str) -> Iterator[tuple[str, str]]:
    """(INSTRUCTION, arguments), with continued lines joined and comments left out."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            instruction, _, arguments = line.strip().partition(" ")
            yield instruction.upper(), arguments.strip()


class Stage:
    """A root folder that stands for an image under construction."""

    def __init__(self, base: Path, root: Path, binds: list[Path]) -> None:
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        self.root, self.binds = root, [*binds, Path("/proc"), Path("/dev")]
        self.folder, self.user = "/", "root"
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"}
        for setting in map(Path, SETTINGS):
            if setting.exists():
                subprocess.run(["cp", "-a", "-T", setting, self.inside(str(setting))], check=True)
        for bind in self.binds:
            self.inside(str(bind)).mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "--rbind", bind, self.inside(str(bind))], check=True)

    def inside(self, path: str) -> Path:
        return self.root / path.lstrip("/") if path.startswith("/") else self.root / self.folder.lstrip("/") / path

    def command(self, words: list[str]) -> list[str]:
        carried = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k == "SSL_CERT_FILE"}
        environment = [f"{k}={v}" for k, v in {**carried, **self.environment, "HOME": "/tmp"}.items()]
        enter = f"cd {shlex.quote(self.folder)} && exec {shlex.join(words)}"
        return ["chroot", f"--userspec={self.user}", str(self.root), "env", "-i", *environment, "sh", "-c", enter]

    def leave(self) -> None:
        for bind in self.binds:
            subprocess.run(["umount", "-l", self.inside(str(bind))], check=False)


def build(dockerfile: str, work: Path, base: Path, binds: list[Path], stages: list[Stage]) -> list[str]:
    """Runs every step; the last stage of `stages` is the image. Returns the command that it would start."""
    names, entry = dict[str, Stage](), list[str]()
    if not base.exists():
        subprocess.run(["debootstrap", "--variant=minbase", "--include=ca-certificates", RELEASE, base], check=True)
    for instruction, arguments in steps(dockerfile):
        print(f"--- {instruction} {arguments}", flush=True)
        if instruction == "FROM":
            words = arguments.split()
            assert words[0] == f"debian:{RELEASE}-slim", "a base that debootstrap does not make"
            stages.append(Stage(base, work / f"stage{len(stages)}", binds))
            if len(words) == 3:
                names[words[2]] = stages[-1]
            continue
        stage = stages[-1]
        if instruction == "RUN":
            subprocess.run(stage.command(["sh", "-ec", arguments]), check=True)
        elif instruction == "COPY":
            copy(arguments, stage, names)
        elif instruction == "WORKDIR":
            stage.folder = arguments
            stage.inside(arguments).mkdir(parents=True, exist_ok=True)
        elif instruction == "ENV":
            name, _, value = arguments.partition("=")
            stage.environment[name] = value.replace("$PATH", stage.environment["PATH"])
        elif instruction == "USER":
            stage.user = f"{arguments}:{arguments}"
        elif instruction in ("ENTRYPOINT", "CMD"):
            entry += json.loads(arguments)
        else:
            assert instruction in ("EXPOSE", "HEALTHCHECK"), f"a step that is not understood: {instruction}"
    return entry


def copy(arguments: str, stage: Stage, names: dict[str, Stage]) -> None:
    """COPY of tracked files, or from an earlier stage."""
    *sources, target = arguments.split()
    if sources[0].startswith("--from="):
        origin = names[sources.pop(0).removeprefix("--from=")]
        subprocess.run(["cp", "-a", origin.inside(sources[0]), stage.inside(target)], check=True)
        return
    tracked = subprocess.run(["git", "ls-files", *sources], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in tracked.stdout.splitlines():
        inner = Path(name).relative_to(sources[0]) if target == sources[0] else Path(name)
        goal = stage.inside(target) / inner
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, goal)


def ask(server: subprocess.Popen[bytes], port: int) -> None:
    """Waits for health, then prints a streamed answer."""
    for _ in range(60):
        assert server.poll() is None, "the server left before it was asked"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            time.sleep(0.5)
    body = {"model": "cria", "stream": True, "messages": [{"role": "user", "content": "What is Puna?"}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    print("".join(json.loads(e)["choices"][0]["delta"].get("content") or "" for e in events[:-1]), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bind", type=Path, action="append", default=[])
    parser.add_argument("--port", type=int, default=7862)
    parser.add_argument("--base", type=Path, help="a fresh Debian that is made there if it is not there yet")
    asked = parser.parse_args()
    stages: list[Stage] = []
    with tempfile.TemporaryDirectory() as work:
        try:
            base = asked.base or Path(work) / "base"
            entry = build((ROOT / "Dockerfile").read_text(), Path(work), base, asked.bind, stages)
            server = subprocess.Popen(stages[-1].command([*entry, "--port", str(asked.port)]))
            try:
                ask(server, asked.port)
            finally:
                server.send_signal(signal.SIGTERM)
                code = server.wait(60)
            print(f"exit code {code}")
            return code
        finally:
            for stage in stages:
                stage.leave()


if __name__ == "__main__":
    raise SystemExit(main())
