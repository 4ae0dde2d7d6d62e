"""The page of roofs has what the script counts, for every kernel and every chip."""

from pathlib import Path

from engine.chips import BANDWIDTHS
from tests.peers.metal_roofline import ANSWERS, M5, PROMPTS, table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "metal_roofline.md").read_text()


def test_the_page_has_the_tables_that_the_script_prints() -> None:
    for works in (ANSWERS, PROMPTS):
        assert table(works) in PAGE


def test_every_kernel_has_a_row_and_every_chip_too() -> None:
    bodies = {"matmul_blocks", "matmul_planes", "matmul_dense"}  # of others: how they read weights
    kernels = {path.stem for path in (ROOT / "engine" / "metal").glob("*.metal")} - bodies
    assert len(kernels) == 10
    assert {work.kernel for work in (*ANSWERS, *PROMPTS)} == kernels | {"MLX's scatter"}
    assert all(f"| `{kernel}`" in PAGE for kernel in kernels)
    assert all(PAGE.count(f"\n| {chip.removeprefix('Apple ')} |") == 2 for chip in BANDWIDTHS)


def test_an_m5s_shaders_are_slower_than_its_neural_accelerators() -> None:
    assert M5.keys() == {chip for chip in BANDWIDTHS if chip.startswith("Apple M5")}
