"""Rows of a matrix on the Apple GPU, run on the host: each bit as the format defines it, no row but those asked for."""

from dataclasses import replace

import numpy as np
import pytest

from engine.metal.rows import rows_call
from tests.engine.weight_cases import F32, Kind, Weights, weights
from tests.metal_host.run import KernelError, Order, run
from tests.metal_host.test_matmul import KINDS, Q4_K, arrays, reading_of, width

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def fetched(w: Weights, ids: list[int], order: Order = Order(), planted: tuple[str, str] = ("", "")) -> F32:  # noqa: B008
    """As MetalLoader's matrices launch it: zeros behind the ids, so that they are no small array to MLX."""
    call = rows_call(reading_of(w.kind), len(ids), w.decoded.shape[1])
    header, body = (part.replace(*planted) for part in (call.kernel.header, call.kernel.body))
    assert planted == ("", "") or (header, body) != (call.kernel.header, call.kernel.body)
    kernel = replace(call.kernel, header=header, body=body)
    given = [np.array([*ids, *[0] * 8], np.int32), *arrays(w)]
    return run(kernel, given, call.template, call.grid, call.threadgroup, call.shapes, order=order)[0]


@every_kind
def test_rows_are_exactly_the_weights_that_the_format_defines(kind: Kind) -> None:
    w = weights(kind, 7, width(kind))
    ids = [6, 0, 3, 3, 1]
    np.testing.assert_array_equal(fetched(w, ids).view(np.uint32), w.decoded[ids].view(np.uint32))


@every_kind
def test_a_row_has_the_same_bits_alone_and_whatever_the_language_leaves_open(kind: Kind) -> None:
    w = weights(kind, 7, width(kind))
    wanted = w.decoded[[5]].view(np.uint32)
    for order in (Order(), Order(reverse=True), Order(flush=True)):
        np.testing.assert_array_equal(fetched(w, [5], order).view(np.uint32), wanted)


def test_an_id_beyond_the_last_row_reads_the_last() -> None:
    """A token that no vocabulary has cannot make the GPU read what is not the matrix's."""
    w = weights(Q4_K, 7, 256)
    np.testing.assert_array_equal(fetched(w, [7, 2**31 - 1, -1]), w.decoded[[6, 6, 6]])


@pytest.mark.parametrize(
    "planted",
    [
        ("out[i + 4] = w.b[i]", "out[i + 4] = w.a[i]"),
        ("weights.row(row), piece", "weights.row(row), piece ^ 1"),
        ("uint(ids[t])", "uint(ids[t + 1])"),
    ],
    ids=str,
)
def test_a_planted_wrong_index_is_found(planted: tuple[str, str]) -> None:
    w = weights(Q4_K, 7, 512)
    ids = [6, 0, 3]
    assert (fetched(w, ids, planted=planted) != w.decoded[ids]).any()


def test_a_planted_read_out_of_bounds_is_found() -> None:
    with pytest.raises(KernelError, match="out of bounds"):
        fetched(weights(Q4_K, 7, 256), [7], planted=("min(uint(ids[t]), N - 1)", "uint(ids[t])"))


def test_a_planted_race_is_found() -> None:
    """Rows of the pass that all come out at the place of the first."""
    with pytest.raises(KernelError, match="race"):
        fetched(weights(Q4_K, 7, 256), [1, 2], planted=("y + t * K", "y + t % 1 * K"))
