"""MLX folders: what MLX quantises and writes is read back, and a folder that contradicts itself is refused."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from quant.errors import ModelFileError, ModelFormatError, UnsupportedModel
from quant.formats import AFFINE, FORMATS, Affine
from quant.json_file import parse_json
from quant.mlx_folder import MLXFolder
from tests.quant.files import quantised, write_config

every_affine = pytest.mark.parametrize("row", AFFINE.values(), ids=lambda row: row.name)
DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
every_dtype = pytest.mark.parametrize("name", DTYPES)

MATRIX = "model.layers.0.self_attn.q_proj"


def weight(rows: int = 8, cols: int = 256) -> mx.array:
    return mx.array(np.random.default_rng(rows * cols).normal(size=(rows, cols)).astype(np.float32))


def save(folder: Path, tensors: dict[str, mx.array], name: str = "model.safetensors") -> None:
    mx.save_safetensors(str(folder / name), tensors, {"format": "mlx"})


@every_dtype
@every_affine
def test_a_quantised_matrix_is_one_tensor(tmp_path: Path, row: Affine, name: str) -> None:
    planes = quantised(MATRIX, weight().astype(DTYPES[name]), row.group, row.bits)
    save(tmp_path, planes)
    write_config(tmp_path, quantization={"group_size": row.group, "bits": row.bits})
    with MLXFolder(tmp_path) as model:
        tensor = model.tensors[f"{MATRIX}.weight"]
        assert [*model.tensors] == [f"{MATRIX}.weight"]
        assert (tensor.shape, tensor.format) == ((8, 256), row)
        assert tensor.nbytes == sum(plane.nbytes for plane in planes.values())
        assert [plane.dtype for plane in tensor.planes] == ["u32", name, name]
        words, scales, biases = planes.values()
        wide = scales.astype(mx.float32), biases.astype(mx.float32)
        oracle = mx.dequantize(words, *wide, group_size=row.group, bits=row.bits)
        np.testing.assert_array_equal(tensor.values(), np.array(oracle))


@every_dtype
def test_a_folder_that_is_not_quantised_is_read(tmp_path: Path, name: str) -> None:
    dense = {f"{MATRIX}.weight": weight().astype(DTYPES[name]), f"{MATRIX}.bias": weight(1, 8)[0].astype(DTYPES[name])}
    save(tmp_path, dense)
    write_config(tmp_path)
    with MLXFolder(tmp_path) as model:
        assert model.config["model_type"] == "llama"
        for key, array in dense.items():
            tensor = model.tensors[key]
            assert (tensor.shape, tensor.format) == (array.shape, FORMATS[name])
            np.testing.assert_array_equal(tensor.values(), np.array(array.astype(mx.float32)))


def test_a_module_may_have_bits_of_its_own_or_none(tmp_path: Path) -> None:
    save(
        tmp_path,
        quantised("a", weight(), 64, 4)
        | quantised("b", weight(), 32, 8)
        | {"c.weight": weight(), "norm.weight": weight()},
    )
    write_config(tmp_path, quantization={"group_size": 64, "bits": 4, "b": {"group_size": 32, "bits": 8}, "c": False})
    with MLXFolder(tmp_path) as model:
        formats = {name: tensor.format.name for name, tensor in model.tensors.items()}
    assert formats == {"a.weight": "affine4_64", "b.weight": "affine8_32", "c.weight": "f32", "norm.weight": "f32"}


def test_the_older_name_of_the_rules_is_known(tmp_path: Path) -> None:
    save(tmp_path, quantised("a", weight(), 64, 4))
    write_config(tmp_path, quantization_config={"group_size": 64, "bits": 4})
    with MLXFolder(tmp_path) as model:
        assert model.tensors["a.weight"].format == Affine(4, 64)


def shards(folder: Path, places: dict[str, Any] | None = None) -> None:
    """A quantised matrix whose planes lie in two files."""
    planes = quantised("a", weight(), 64, 4)
    words = {"a.weight": planes.pop("a.weight")}
    save(folder, words, "model-00001-of-00002.safetensors")
    save(folder, planes, "model-00002-of-00002.safetensors")
    found = dict.fromkeys(words, "model-00001-of-00002.safetensors") | dict.fromkeys(
        planes, "model-00002-of-00002.safetensors"
    )
    index = {"metadata": {}, "weight_map": found if places is None else found | places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_config(folder, quantization={"group_size": 64, "bits": 4})


def test_planes_may_lie_in_different_shards(tmp_path: Path) -> None:
    shards(tmp_path)
    with MLXFolder(tmp_path) as model:
        assert len({plane.file.path for plane in model.tensors["a.weight"].planes}) == 2
        assert model.tensors["a.weight"].values().shape == (8, 256)


OUTSIDE = ["../outside.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "a\\x.safetensors", "\0.safetensors"]


@pytest.mark.parametrize(
    "place", [*OUTSIDE, "..", "", "config.json", ".hidden.safetensors", None, 3, ["x.safetensors"]]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, place: Any) -> None:
    shards(tmp_path, {"a.biases": place})
    with pytest.raises(ModelFormatError, match=r"weight_map names .*, which is not a file of this folder"):
        MLXFolder(tmp_path)


def test_an_index_that_is_wrong_of_a_tensor_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, {"a.biases": "model-00001-of-00002.safetensors"})
    with pytest.raises(ModelFormatError, match=r"tensor 'a\.biases' is not in 'model-00001-of-00002\.safetensors'"):
        MLXFolder(tmp_path)


def test_an_index_that_names_an_absent_file_is_refused(tmp_path: Path) -> None:
    shards(tmp_path, {"b.weight": "model-00003-of-00002.safetensors"})
    with pytest.raises(ModelFileError, match=r"model-00003-of-00002\.safetensors: cannot be opened"):
        MLXFolder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    save(tmp_path, quantised("a", weight(), 64, 4), "model-00001-of-00002.safetensors")
    with pytest.raises(
        ModelFormatError, match=r"model-00002-of-00002\.safetensors: tensor 'a\.(scales|biases)' occurs twice"
    ):
        MLXFolder(tmp_path)


@pytest.mark.parametrize("missing", ["scales", "biases"])
def test_a_plane_that_is_missing_is_refused(tmp_path: Path, missing: str) -> None:
    planes = quantised("a", weight(), 64, 4)
    del planes[f"a.{missing}"]
    save(tmp_path, planes)
    write_config(tmp_path, quantization={"group_size": 64, "bits": 4})
    with pytest.raises(ModelFormatError, match=r"tensor 'a\.weight' lacks its scales or its biases"):
        MLXFolder(tmp_path)


RULES: list[tuple[Any, type[Exception], str]] = [
    (None, ModelFormatError, "says nothing of quantisation, yet 'a' is quantised"),
    (4, ModelFormatError, "says nothing of quantisation, yet 'a' is quantised"),
    ({"group_size": 64, "bits": 4, "a": False}, ModelFormatError, "says that 'a' is not quantised, and it is"),
    ({"group_size": 64, "bits": 4, "mode": "mxfp4"}, UnsupportedModel, "'a' is quantised in mode 'mxfp4'"),
    ({"group_size": 16, "bits": 4}, UnsupportedModel, "'a' has 4 bits in groups of 16"),
    ({"group_size": 64, "bits": 7}, UnsupportedModel, "'a' has 7 bits in groups of 64"),
    ({"group_size": 64}, UnsupportedModel, "'a' has None bits in groups of 64"),
    ({"group_size": 64, "bits": 8}, ModelFormatError, "is not 8 bits in groups of 64"),
    ({"group_size": 128, "bits": 4}, ModelFormatError, "is not 4 bits in groups of 128"),
    ({"group_size": 64, "bits": 3}, ModelFormatError, "is not 3 bits in groups of 64"),
]


@pytest.mark.parametrize(("rules", "error", "text"), RULES, ids=[str(rules) for rules, _, _ in RULES])
def test_rules_that_the_planes_contradict_are_refused(
    tmp_path: Path, rules: Any, error: type[Exception], text: str
) -> None:
    save(tmp_path, quantised("a", weight(), 64, 4))
    write_config(tmp_path, quantization=rules)
    with pytest.raises(error, match=text):
        MLXFolder(tmp_path)


def test_planes_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    planes = quantised("a", weight(), 64, 4)
    write_config(tmp_path, quantization={"group_size": 64, "bits": 4})
    save(tmp_path, planes | {"a.biases": planes["a.biases"].astype(mx.float16)})
    with pytest.raises(ModelFormatError, match=r"tensor 'a\.weight' is made of \('u32', 'f32', 'f16'\)"):
        MLXFolder(tmp_path)
    save(tmp_path, {"a.words": planes["a.weight"]})
    with pytest.raises(ModelFormatError, match=r"tensor 'a\.words' holds words that are no weight"):
        MLXFolder(tmp_path)
    save(tmp_path, {"a.weight": mx.zeros((2, 2), mx.int64)})
    with pytest.raises(UnsupportedModel, match=r"tensor 'a\.weight' is 'I64', which is not decoded"):
        MLXFolder(tmp_path)


CONFIGS = [b"", b"{", b"[]", b"3", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config[:16]))
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(ModelFormatError, match=r"config\.json: ") as fault:
        MLXFolder(tmp_path)
    assert str(fault.value).isprintable()


def test_a_config_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(ModelFormatError, match=f"{1 << 40} bytes of JSON"):
        MLXFolder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(ModelFormatError, match=r"holds neither model\.safetensors nor model\.safetensors\.index\.json"):
        MLXFolder(tmp_path)


def test_a_refused_folder_keeps_no_file_open(tmp_path: Path) -> None:
    shards(tmp_path)
    before = len(os.listdir("/dev/fd"))
    with MLXFolder(tmp_path):
        assert len(os.listdir("/dev/fd")) == before + 2
    write_config(tmp_path)
    with pytest.raises(ModelFormatError):
        MLXFolder(tmp_path)
    assert len(os.listdir("/dev/fd")) == before


def framed(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def described(**change: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change


def one(**change: Any) -> bytes:
    """A file of one tensor of eight bytes whose description is changed."""
    return framed(json.dumps({"t": described(**change)}).encode(), bytes(8))


HOSTILE = {
    "empty": b"",
    "seven bytes": bytes(7),
    "length 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "length 2^64-1": struct.pack("<Q", (1 << 64) - 1) + b"{}",
    "length beyond the file": struct.pack("<Q", 3) + b"{}",
    "no JSON": framed(b"{"),
    "no object": framed(b"[]"),
    "UTF-16": framed("{}".encode("utf-16")),
    "nested": framed(b'{"t":' + b"[" * 200_000),
    "key twice": framed(b'{"t": 1, "t": 1}'),
    "entry no object": framed(b'{"t": 1}'),
    "no dtype": framed(b'{"t": {"shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    "no shape": framed(b'{"t": {"dtype": "F32", "data_offsets": [0, 8]}}', bytes(8)),
    "notes no strings": framed(b'{"__metadata__": {"a": 1}}'),
    "notes a number": framed(b'{"__metadata__": 0}'),
    "dtype a number": one(dtype=3),
    "dtype unknown": one(dtype="F33"),
    "size mismatch": one(dtype="F16"),
    "shape a number": one(shape=2),
    "shape negative": one(shape=[-2]),
    "shape overflows": one(shape=[1 << 62, 1 << 62]),
    "shape of floats": one(shape=[2.0]),
    "shape of bools": one(shape=[True], data_offsets=[0, 4]),
    "shape empty": one(shape=[0], data_offsets=[0, 0]),
    "shape of 2000 ones": one(shape=[2] + [1] * 2000),
    "offsets reversed": one(data_offsets=[8, 0]),
    "offsets beyond": one(shape=[4], data_offsets=[0, 16]),
    "offset negative": one(data_offsets=[-8, 0]),
    "offset 2^64": one(data_offsets=[0, 1 << 64]),
    "one offset": one(data_offsets=[8]),
    "hole before": one(shape=[1], data_offsets=[4, 8]),
    "bytes after": one(shape=[1], data_offsets=[0, 4]),
    "overlap": framed(json.dumps({"t": described(), "u": described()}).encode(), bytes(8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_safetensors_file_is_refused(tmp_path: Path, name: str) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[name])
    with pytest.raises(ModelFileError, match=r"model\.safetensors: ") as fault:
        MLXFolder(tmp_path)
    assert str(fault.value).isprintable()


def test_a_refusal_is_short_however_long_the_names_are(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(framed(json.dumps({"t" * 1_000_000: 1}).encode()))
    with pytest.raises(ModelFormatError) as fault:
        MLXFolder(tmp_path)
    assert len(fault.value.fault) <= ModelFormatError.LONGEST + 3


def test_a_shard_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    save(tmp_path / "blobs", {"norm.weight": mx.zeros(4)})
    (tmp_path / "snapshot" / "model.safetensors").symlink_to(tmp_path / "blobs" / "model.safetensors")
    write_config(tmp_path / "snapshot")
    with MLXFolder(tmp_path / "snapshot") as model:
        assert [*model.tensors] == ["norm.weight"]


def test_a_sound_file_of_the_same_making_is_read(tmp_path: Path) -> None:
    """So that the hostile ones are refused for what is wrong in them."""
    write_config(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(one())
    with MLXFolder(tmp_path) as model:
        assert model.tensors["t"].values().tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    write_config(folder, quantization={"group_size": 32, "bits": 4})
    save(folder, quantised("a", weight(2, 32), 32, 4) | {"norm.weight": weight(1, 4)[0]}, "original")
    return folder


@given(cuts=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 16), st.binary(max_size=16)), max_size=3))
def test_what_we_accept_the_safetensors_library_accepts(sound: Path, cuts: list[tuple[int, int, bytes]]) -> None:
    data = (sound / "original.safetensors").read_bytes()
    for at, length, replacement in cuts:
        at %= len(data) + 1
        data = data[:at] + replacement + data[at + length :]
    path = sound / "model.safetensors"
    path.write_bytes(data)
    try:
        with MLXFolder(sound) as model:
            ours = {plane.offset for tensor in model.tensors.values() for plane in tensor.planes}
            for tensor in model.tensors.values():
                tensor.values()
    except ModelFileError:
        return
    try:
        with safe_open(path, "numpy") as theirs:
            assert len(theirs.keys()) == len(ours)
    except SafetensorError as fault:
        raise AssertionError("accepted what the library refuses") from fault


@given(raw=st.binary(max_size=64))
def test_json_is_parsed_or_refused(raw: bytes) -> None:
    try:
        parse_json(Path("x.json"), raw)
    except ModelFormatError:
        return
    json.loads(raw)
