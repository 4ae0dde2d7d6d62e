"""A quantised folder computes what mlx-lm computes from it."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from tests.models.oracle import tolerance
from tests.models.passes import Runner
from tests.tiny_models import write_mlx

utils = pytest.importorskip("mlx_lm.utils", reason="mlx-lm is not installed: it comes with the extra `convert`")

TOKENS = np.random.default_rng(9).integers(0, 320, 40).tolist()


@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_logits_equal_those_of_mlx_lm(arch: str, rope: str, tmp_path: Path) -> None:
    path = write_mlx(tmp_path, arch, bits=4, rope=rope, tied=arch == "qwen3")
    model, _ = utils.load_model(path)
    theirs = np.array(model(mx.array([TOKENS]))[0].astype(mx.float32))
    ours = Runner(path).last_logits(TOKENS, [len(TOKENS)], [3, 1])[0]
    np.testing.assert_allclose(ours, theirs[-1], rtol=0, atol=tolerance(theirs))
