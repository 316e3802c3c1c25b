"""The reader and the writer against the safetensors library and the stock class's own `save_pretrained`."""

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_progressive.growth.reader import INDEX_NAME, WEIGHTS_NAME, CheckpointReader, TensorSpec, is_finite
from hf_progressive.growth.writer import CheckpointWriter
from hf_progressive.storage import sha256_file

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
TINY = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 64}


def random_tensors(shapes, dtypes):
    generator = torch.Generator().manual_seed(0)
    return {
        f"t{i}": torch.randn(shape, generator=generator).to(dtype)
        for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    }


def write(folder, tensors, **options):
    specs = {name: TensorSpec(shape=tuple(tensor.shape), dtype=tensor.dtype) for name, tensor in tensors.items()}
    with CheckpointWriter(folder, specs, **options) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
    return writer


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@settings(max_examples=40)
@given(
    tensors=st.lists(
        st.tuples(st.lists(st.integers(0, 5), max_size=3), st.sampled_from((*FLOATING, torch.uint8, torch.int64))),
        min_size=1,
        max_size=6,
    ),
    max_shard_size=st.integers(1, 400),
)
def test_what_is_written_is_what_safetensors_reads_and_what_we_read_back(tensors, max_shard_size, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    tensors = random_tensors(*zip(*tensors, strict=True))
    writer = write(folder, tensors, max_shard_size=max_shard_size)

    files = sorted(folder.glob("*.safetensors"))
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert same(merged, tensors)
    assert writer.sha256 == {file.name: sha256_file(file) for file in files}

    reader = CheckpointReader(folder)
    assert same({name: reader.read(name) for name in reader.specs}, tensors)
    assert {name: spec.shape for name, spec in reader.specs.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_files_are_named_and_split_as_save_pretrained_does(tmp_path, max_shard_size):
    model = GPT2LMHeadModel(GPT2Config(**TINY))
    model.save_pretrained(tmp_path / "stock", max_shard_size=max_shard_size)
    reader = CheckpointReader(tmp_path / "stock")
    (tmp_path / "ours").mkdir()
    write(
        tmp_path / "ours", {name: reader.read(name) for name in model.state_dict() if name in reader.specs},
        max_shard_size=max_shard_size,
    )  # fmt: skip

    stock, ours = ({f.name for f in (tmp_path / side).glob("model*")} for side in ("stock", "ours"))
    assert ours == stock
    assert len(ours) == (1 if max_shard_size == "5GB" else 3)
    if INDEX_NAME in stock:
        stock_index, our_index = (json.loads((tmp_path / side / INDEX_NAME).read_text()) for side in ("stock", "ours"))
        assert our_index["weight_map"] == stock_index["weight_map"]
        assert our_index["metadata"]["total_size"] == stock_index["metadata"]["total_size"]
    shutil.copy(tmp_path / "stock" / "config.json", tmp_path / "ours")
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    assert same(dict(loaded.state_dict()), dict(model.state_dict()))


def test_a_tensor_that_is_not_aligned_is_read(tmp_path):
    data = bytes(3) + torch.arange(4.0).numpy().tobytes()
    entries = {"odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}
    raw(tmp_path, entries | {"a": {**F4, "data_offsets": [3, 19]}}, data)
    assert torch.equal(CheckpointReader(tmp_path).read("a"), torch.arange(4.0))


def test_what_is_read_can_be_changed_and_the_file_stays(tmp_path):
    before = single(tmp_path).read_bytes()
    CheckpointReader(tmp_path).read("a").mul_(2)
    assert (tmp_path / WEIGHTS_NAME).read_bytes() == before


def test_a_tensor_that_is_not_contiguous_is_written_by_value(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).T
    write(tmp_path, {"w": tensor})
    assert torch.equal(load_file(tmp_path / WEIGHTS_NAME)["w"], tensor)


def test_what_waits_to_be_written_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_progressive.growth.writer._IN_FLIGHT_BYTES", 4096)
    monkeypatch.setattr("hf_progressive.growth.writer._FLUSH_BYTES", 8192)
    tensors = random_tensors([(16, 16)] * 40, [torch.float32] * 40)
    specs = {name: TensorSpec(shape=(16, 16), dtype=torch.float32) for name in tensors}
    with CheckpointWriter(tmp_path, specs) as writer:
        for name in writer.order:
            writer.write(name, tensors[name])
            assert writer._file._pending_bytes <= 4096
    assert same(load_file(tmp_path / WEIGHTS_NAME), tensors)


def test_an_error_inside_leaves_no_thread_and_no_open_file(tmp_path):
    specs = {"w": TensorSpec(shape=(2,), dtype=torch.float32)}
    writer = CheckpointWriter(tmp_path, specs)
    writer.write("w", torch.zeros(2))
    file = writer._file
    writer.__exit__(KeyError, KeyError(), None)
    assert file._file.closed
    with pytest.raises(RuntimeError, match="shutdown"):
        file._hashing.submit(print)


def test_a_failing_write_is_reported(tmp_path, monkeypatch):
    def full(self, buffer):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_progressive.growth.writer._GrowingFile._write", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, {"w": torch.zeros(2)})


@pytest.mark.parametrize("dtype", FLOATING)
def test_finite_agrees_with_isfinite(dtype):
    top = torch.finfo(dtype).max
    for values, finite in (
        ([1.0, 2.0], True),
        ([top, top, top], True),  # its sum overflows
        ([top, -top], True),
        ([1.0, float("nan")], False),
        ([float("inf"), float("-inf")], False),
        ([], True),
    ):
        assert is_finite(torch.tensor(values, dtype=dtype)) is finite


# --- refusals ---


def single(folder):
    save_file({"a": torch.ones(4), "b": torch.ones(2, 2)}, folder / WEIGHTS_NAME)
    return folder / WEIGHTS_NAME


def sharded(folder, weight_map=None):
    save_file({"a": torch.ones(4)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(4)}, folder / "model-00002-of-00002.safetensors")
    weight_map = weight_map or {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def raw(folder, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS_NAME).write_bytes(len(text).to_bytes(8, "little") + text + data)


def cut(folder, keep):
    path = single(folder)
    path.write_bytes(path.read_bytes()[:keep])


F4 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
REFUSALS = {
    "nothing": (lambda f: None, FileNotFoundError, "has neither model.safetensors nor model.safetensors.index.json"),
    "pickle": (
        lambda f: (f / "pytorch_model.bin").touch(),
        ValueError,
        r"pytorch_model.bin is a pickle.*convert it.*save_pretrained",
    ),
    "cut in the data": (
        lambda f: cut(f, -5),
        ValueError,
        r"\d+ bytes that are no whole .*not fully covered",
    ),
    "cut in the header": (
        lambda f: cut(f, 20),
        ValueError,
        r"20 bytes that .* \(invalid header length",
    ),
    "cut in the length": (
        lambda f: cut(f, 3),
        ValueError,
        r"3 bytes that .* \(header too small",
    ),
    "empty file": (lambda f: cut(f, 0), ValueError, r"0 bytes that .* \(header too small"),
    "longer than stated": (lambda f: raw(f, {"a": F4}, b"\0" * 17), ValueError, "not fully covered.; fetch it again"),
    "not safetensors": (
        lambda f: (f / WEIGHTS_NAME).write_text("version https://git-lfs"),
        ValueError,
        "header too large",
    ),
    "not JSON": (lambda f: raw(f, b"{'a': 1}"), ValueError, "invalid JSON in header"),
    "not an object": (lambda f: raw(f, [F4]), ValueError, "invalid JSON in header"),
    "repeated name": (
        lambda f: raw(f, f'{{"a": {json.dumps(F4)}, "a": {json.dumps(F4)}}}'.encode()),
        ValueError,
        "a is there twice",
    ),
    "hole": (
        lambda f: raw(f, {"a": {**F4, "data_offsets": [8, 24]}}, b"\0" * 24),
        ValueError,
        "invalid offset for tensor `a`",
    ),
    "shape contradicts bytes": (
        lambda f: raw(f, {"a": {**F4, "shape": [5]}}),
        ValueError,
        "invalid shape",
    ),
    "negative shape": (lambda f: raw(f, {"a": {**F4, "shape": [-2, -2]}}), ValueError, "integer `-2`, expected usize"),
    "dtype": (
        lambda f: raw(f, {"a": {**F4, "dtype": "C64", "shape": [2]}}),
        ValueError,
        "dtype C64; growth takes F64",
    ),
    "index without map": (lambda f: (f / INDEX_NAME).write_text("{}"), ValueError, 'has no "weight_map"'),
    "index with an empty map": (
        lambda f: (f / INDEX_NAME).write_text('{"weight_map": {}}'),
        ValueError,
        'index.json: has no "weight_map"',
    ),
    "shards without their index": (
        lambda f: (sharded(f), (f / INDEX_NAME).unlink()),
        FileNotFoundError,
        "nor model.safetensors.index.json; it holds model-00001-of-00002.safetensors, so fetch or save what",
    ),
    "index cut": (lambda f: (f / INDEX_NAME).write_text('{"weight'), ValueError, "not valid JSON"),
    "missing shard": (
        lambda f: sharded(f, {"a": "model-00001-of-00002.safetensors", "c": "gone.safetensors"}),
        FileNotFoundError,
        "names gone.safetensors, missing from the folder",
    ),
    "shard outside": (
        lambda f: sharded(f, {"a": "../model.safetensors"}),
        ValueError,
        r"names '\.\./model.safetensors', which is no file inside the folder",
    ),
    "shard at an absolute path": (
        lambda f: sharded(f, {"a": "/etc/model.safetensors"}),
        ValueError,
        "names '/etc/model.safetensors', which is no file inside the folder",
    ),
    "shard that is a pickle": (lambda f: sharded(f, {"a": "x.bin"}), ValueError, "not a .safetensors file"),
    "index and shard disagree": (
        lambda f: sharded(f, {"b": "model-00001-of-00002.safetensors", "a": "model-00002-of-00002.safetensors"}),
        ValueError,
        "tensor b is not in model-00001-of-00002.safetensors",
    ),
    "tensor in two shards": (
        lambda f: (sharded(f), save_file({"a": torch.ones(4)}, f / "model-00002-of-00002.safetensors")),
        ValueError,
        "tensor a is in both model-00001-of-00002.safetensors and model-00002",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_clear_line(tmp_path, case):
    damage, error, text = REFUSALS[case]
    damage(tmp_path)
    with pytest.raises(error, match=text) as raised:
        CheckpointReader(tmp_path)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_the_tensor_named(tmp_path, value):
    save_file({"good": torch.ones(3), "bad": torch.tensor([1.0, value])}, tmp_path / WEIGHTS_NAME)
    reader = CheckpointReader(tmp_path)
    reader.read("good")
    with pytest.raises(ValueError, match="tensor bad holds NaN or infinite"):
        reader.read("bad")


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path):
    path = single(tmp_path)
    reader = CheckpointReader(tmp_path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        {name: reader.read(name) for name in reader.specs}


def test_a_dtype_the_format_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"tensor w: .* cannot hold torch.complex64"):
        CheckpointWriter(tmp_path, {"w": TensorSpec(shape=(2,), dtype=torch.complex64)})
