"""What `puna kernels` says of verdicts, and of a machine that has none."""

import msgspec
import pytest

from engine.kernel_report import KernelReport
from engine.verdicts import Fate, Finding, Verdict
from server.cli import run
from server.kernels import asked, table

FINDING = Finding(
    (
        Verdict("mlx", "x", Fate.SLOWER, "takes 1.60 of the time of blocks", {"decode 1": 8e-5, "prompt 512": 0.02}),
        Verdict("blocks", "y", Fate.CHOSEN, "", {"decode 1": 5e-5, "prompt 512": 0.0125}),
        Verdict("few", "z", Fate.DIFFERS, "3 rows: 1 of 9 numbers off"),
    )
)
REPORT = KernelReport("Apple M9", "0.32.4", "/home/kernels.json", {"product q4_k large float16": FINDING})


def test_a_machine_without_a_metal_gpu_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if asked(retune=False).chip is not None:
        pytest.skip("there is one")
    for arguments in (["kernels"], ["kernels", "--retune"]):
        assert run(arguments) == 0
        out, err = capsys.readouterr()
        assert out == "no Metal GPU here: kernels for Apple's GPUs are neither tried nor used\n"
        assert err == ""


def test_the_table_names_the_chosen_the_times_and_why_the_others_are_out() -> None:
    assert list(table(REPORT)) == [
        "Apple M9, MLX 0.32.4; kept in /home/kernels.json",
        "",
        "product q4_k large float16              decode 1    prompt 512",
        "  mlx                                    80.0 us       20.0 ms  slower: takes 1.60 of the time of blocks",
        "* blocks                                 50.0 us       12.5 ms  chosen",
        "  few                                          -             -  differs: 3 rows: 1 of 9 numbers off",
    ]


def test_a_report_crosses_between_processes_as_it_was() -> None:
    assert msgspec.json.decode(msgspec.json.encode(REPORT), type=KernelReport) == REPORT


def test_before_anything_was_tried_it_says_what_tries_it() -> None:
    empty = KernelReport("Apple M9", "0.32.4", None, {})
    assert list(table(empty)) == [
        "Apple M9, MLX 0.32.4; kept in no file: there is no home directory",
        "nothing was tried yet: a model's first load does it, or `puna kernels --retune`",
    ]
