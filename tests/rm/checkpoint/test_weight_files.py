"""What is read of weight files, and files that are none."""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest
from safetensors.torch import load_file, save_file
from support.tiny_models import save_causal, save_encoder

from rm.checkpoint.memory_check import weights_bytes
from rm.checkpoint.weight_files import tensor_shapes
from rm.identity import ModelError, effective_max_length, identify, resolve_model
from rm.scorer import Scorer

SETTINGS = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}


def load(directory):
    """Go the way of a run: locate, fingerprint, load."""
    identify(resolve_model(str(directory)), **SETTINGS)
    return Scorer.load(directory, **SETTINGS, tokens_per_batch=500, device="cpu")


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


HEADERS = {
    "list": safetensors([]),
    "number": safetensors(7),
    "entry that is a list": safetensors({"a": [1, 2]}),
    "no offsets": safetensors({"a": {"dtype": "F32", "shape": [1]}}, b"0000"),
    "no shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"0000"),
    "shape of text": safetensors({"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, b"0000"),
    "negative shape": safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"),
    "offsets of text": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}, b"0000"),
    "one offset": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}, b"0000"),
    "deep": safetensors(b"[" * 100_000),
    "not JSON": safetensors(b"{"),
    "not UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "cut": safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"00"),
    "unknown type": safetensors({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, b"0000"),
    "empty file": b"",
    "seven bytes": b"1234567",
    "header of 2^63 bytes": struct.pack("<Q", 1 << 63) + b"{}",
}
JSON = {
    "list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "deep": b"[" * 100_000,
    "101 levels": b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    "deep object": b'{"a":' * 50_000,
    "huge number": b'{"max_position_embeddings": ' + b"9" * 5_000 + b"}",
    "cut": b'{"a',
    "empty": b"",
    "not UTF-8": b'{"\xff": 1}',
}
JSON_FILES = ["config.json", "tokenizer_config.json", "tokenizer.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_causal(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def model(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.mark.parametrize("kind", HEADERS)
def test_malformed_weights_are_refused_with_their_name(model, kind):
    (model / "model.safetensors").write_bytes(HEADERS[kind])
    with pytest.raises(ModelError, match=r"model.*(safetensors file; fetch it again|ForSequenceClassification)"):
        load(model)


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("kind", JSON)
def test_malformed_json_is_refused_with_its_name(model, name, kind):
    (model / name).write_bytes(JSON[kind])
    with pytest.raises(ModelError, match=rf"/{name} .*restore it"):
        load(model)


@pytest.mark.parametrize("name", [*JSON_FILES, "model.safetensors"])
@pytest.mark.parametrize("kind", ["loop", "dangling link", "pipe", "directory"])
def test_what_is_no_file_is_refused_and_not_waited_for(model, name, kind):
    place = model / name
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(name if kind == "loop" else "nowhere")
    with pytest.raises(ModelError, match=rf"/{name} (is|cannot be read).*(restore|fetch)"):
        load(model)


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"weight_map": None},
        {"weight_map": ["model.safetensors"]},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../other.safetensors"}},
        {"weight_map": {"a": "part/one.safetensors"}},
        {"weight_map": {"a": "pytorch_model.bin"}},
        {"weight_map": {"a": "absent.safetensors"}},
    ],
)
def test_an_index_names_files_beside_it(model, index):
    (model / "model.safetensors").rename(model / "part-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json"):
        load(model)


def test_weights_under_a_name_of_their_own_are_refused(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_weights": "model.safetensors"}))
    with pytest.raises(ModelError, match=r"transformers_weights: 'model\.safetensors'"):
        load(model)


def test_only_weights_that_are_loaded_count(model):
    """A second copy beside them, as of `consolidated.safetensors`, takes no memory."""
    expected = weights_bytes(model, "float32")
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert weights_bytes(model, "float32") == expected
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    (model / "model.safetensors").unlink()
    parts = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(names)}
    for part in set(parts.values()):
        save_file({name: tensors[name] for name in names if parts[name] == part}, model / part, {"format": "pt"})
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert dict(tensor_shapes(model)) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert load(model).model.computing_parameters


def test_odd_limits_in_the_configuration_are_no_limits(tmp_path):
    model = save_encoder(tmp_path)
    config = json.loads((model / "config.json").read_text())
    odd = {"model_type": "roberta", "text_config": [1], "pad_token_id": "x", "n_positions": "12"}
    (model / "config.json").write_text(json.dumps({**config, **odd}))
    assert effective_max_length(model, 4096) == 63
