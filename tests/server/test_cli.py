"""Laws of the command line: it starts fast, faults are one line, and nothing is imported that is not needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.cli import run

CHECKOUT = Path(__file__).parents[2]


def test_a_file_that_is_none_is_one_line_and_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(20))
    assert run(["inspect", str(broken)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"puna: {broken}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["serve", "--port", "70000"], ["serve", "--ctx", "0"]])
def test_a_wrong_command_line_is_code_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(arguments)
    assert leaving.value.code == 2
    assert "usage: puna" in capsys.readouterr().err


def imported_by(program: str) -> set[str]:
    tail = "; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program + tail], cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_asking_for_help_imports_no_web_framework() -> None:
    assert not imported_by("import server.cli") & {"fastapi", "uvicorn", "asyncio", "numpy", "tokenizers"}


def test_the_server_process_never_imports_mlx() -> None:
    """Weights and Metal belong to the engine's process; what crashes there must not be able to crash here."""
    loaded = imported_by("import server.serve, server.loading, server.run, server.service, server.inspection")
    assert not loaded & {"mlx", "mlx.core", "torch", "transformers"}
