"""Laws of the command line: it starts fast, faults are one line, and nothing is imported that is not needed."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from server.cli import _parsed, _parser, _serve_arguments, _spec, run
from server.loading import name_of

CHECKOUT = Path(__file__).parents[2]


def test_a_file_that_is_none_is_one_line_and_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(20))
    assert run(["inspect", str(broken)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"puna: {broken}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["serve", "--port", "70000"],
        ["serve", "--ctx", "0"],
        ["serve", "--kv-memory", "9" * 23],
        ["serve", "--kv-memory", "4X"],
        ["serve", "--kv-memory", "0"],
        ["serve", "--kv-format", "q3"],
        ["serve", "a.gguf", "--port", "1", "--nothing", "b.gguf"],
        ["run", "a.gguf", "one", "--seed", "1", "two"],
        ["inspect", "a.gguf", "--ctx", "1", "b.gguf"],
        ["serve", "--queue-time", "0"],
        ["serve", "--threads", "2000"],
        ["serve", "--max-batch", "many"],
    ],
)
def test_a_wrong_command_line_is_code_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run(arguments)
    assert leaving.value.code == 2
    assert "usage: puna" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--log-file", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("puna: ")
    assert str(tmp_path) in err
    assert err.count("\n") == 1


def test_a_terminal_that_lacks_a_character_shows_another(tmp_path: Path) -> None:
    file = tmp_path / "é.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("cría")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    command = [sys.executable, "-c", "from server.cli import main; main()", "inspect", str(file)]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=CHECKOUT, env=ascii_only, capture_output=True, text=True, timeout=60)
    assert "cr?a" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_model_is_named_as_its_user_sees_it(tmp_path: Path) -> None:
    """In a hub's cache a model is a link to a file that is named by its hash."""
    (tmp_path / "llama.gguf").symlink_to(tmp_path / "0123abcd")
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    assert name_of(tmp_path / "llama.gguf") == "llama"
    assert name_of(tmp_path / "loop.gguf") == "loop"
    assert name_of(tmp_path / "a" / "..") == tmp_path.name


def parsed(*arguments: str) -> argparse.Namespace:
    return _parsed(_parser(), arguments)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1", 1), ("4096", 4096), ("3K", 3072), ("512M", 2**29), ("4g", 2**32), ("1.5GiB", 3 * 2**29), ("2TB", 2**41)],
)
def test_a_size_is_a_number_of_bytes(text: str, size: int) -> None:
    assert parsed("serve", "--kv-memory", text).kv_memory == size


def test_words_may_follow_options() -> None:
    assert parsed("serve", "a", "--port", "1", "b", "--ctx", "2", "c").models == [Path("a"), Path("b"), Path("c")]
    assert parsed("serve", "--port", "1", "b").models == [Path("b")]
    assert parsed("run", "a", "--seed", "1", "a prompt").prompt == "a prompt"


def test_the_cache_is_as_the_options_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parsed("serve", "m.gguf", "--kv-format", "q8", "--kv-memory", "1G", "--kv-disk", "cold")
    spec = _spec(Path("m.gguf"), options, 4)
    assert (spec.kv, spec.kv_memory) == ("q8", 2**30)
    assert (spec.kv_disk, spec.kv_disk_budget) == (str(tmp_path / "cold"), 10 * 2**30)
    plain = _spec(Path("m.gguf"), parsed("serve"), 4)
    assert (plain.kv, plain.kv_memory, plain.kv_disk, plain.kv_disk_budget) == ("f16", None, None, None)


def test_prompts_go_where_the_options_say() -> None:
    for where in ("auto", "gpu", "cpu"):
        options = parsed("serve", "m.gguf", "--prefill", where)
        assert _spec(Path("m.gguf"), options, 4).prefill == where
        assert ["--prefill", where] == _serve_arguments(options)[-2:]
    assert _spec(Path("m.gguf"), parsed("run", "m.gguf"), 1).prefill == "auto"


def test_a_budget_of_no_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "m.gguf", "--kv-disk-budget", "1G"]) == 1
    assert capsys.readouterr().err == "puna: --kv-disk-budget: of which folder? See --kv-disk\n"


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


def test_a_prompt_that_cannot_be_read_is_one_line_and_code_one(tmp_path: Path) -> None:
    program = "from server.cli import main; main()"
    command = [sys.executable, "-c", program, "run", str(tmp_path / "model.gguf")]
    found = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": found}
    for redirected, fault in (("<&-", "standard input cannot be read"), ("< latin", "is not UTF-8")):
        (tmp_path / "latin").write_bytes(b"\xff")
        shell = ["sh", "-c", f'exec "$@" {redirected}', "sh", *command]
        done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert fault in done.stderr
        assert done.stderr.count("\n") == 1
