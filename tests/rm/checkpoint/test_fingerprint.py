"""Any byte of a model's directory: the fingerprint moves, the load fails, or no reward depends on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import save_causal, save_encoder

from rm.identity import ModelError, identify, resolve_model
from rm.scorer import Scorer

GROUPS = [((("user", "what is the answer"),), ["good answer", "bad reply , more words here"])]
OTHERS = {
    "generation_config.json": '{"eos_token_id": 5, "pad_token_id": 0}',
    "preprocessor_config.json": '{"image_processor_type": "ViTImageProcessor"}',
    "processor_config.json": '{"processor_class": "LlavaProcessor", "chat_template": "{{ messages }}"}',
    "additional_chat_templates/rag.jinja": "{{ messages }} {{ documents }}",
    "modeling_custom.py": "raise RuntimeError('it runs')\n",
    "trainer_state.json": '{"global_step": 7}',
    "original/params.json": '{"dim": 32}',
    "README.md": "---\nlibrary_name: peft\n---\n",
}


@pytest.fixture(scope="module", params=["causal", "encoder"])
def directory(request, tmp_path_factory) -> Path:
    """A model with files of all kinds that models come with, and with its settings in all places that they may have."""
    root = tmp_path_factory.mktemp(request.param)
    directory = save_causal(root, chat=True) if request.param == "causal" else save_encoder(root)
    for name, text in OTHERS.items():
        if request.param == "encoder" and "templates" in name:  # it has no default one, and would be refused
            continue
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    (directory / "special_tokens_map.json").write_text('{"unk_token": "[UNK]"}')
    (directory / "added_tokens.json").write_text("{}")
    for name in ("config", "tokenizer"):
        (directory / f"{name}.4.0.0.json").write_bytes((directory / f"{name}.json").read_bytes())
    for name, key in (("config", "configuration_files"), ("tokenizer_config", "fast_tokenizer_files")):
        file = directory / f"{name}.json"
        listed = [f"{name.removesuffix('_config')}{version}.json" for version in ("", ".4.0.0")]
        file.write_text(json.dumps({**json.loads(file.read_text()), key: listed}))
    return directory


def files_of(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def fingerprint(directory: Path) -> str:
    """Without the memory of hashes, which tests/rm/test_hash_cache.py is about."""
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()
    }
    settings = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}
    return identify(directory, hashes=hashes, **settings).fingerprint(mapping={})


def rewards(directory: Path) -> np.ndarray:
    resolve_model(str(directory))
    scorer = Scorer.load(
        directory, dtype="float32", max_length=64, too_long="truncate", tokens_per_batch=500, device="cpu"
    )
    return scorer.score(GROUPS)[0].rewards


def assert_seen_or_without_effect(directory: Path, file: Path, offset: int, value: int, expected) -> None:
    whole = file.read_bytes()
    place = offset % len(whole)
    before = fingerprint(directory)
    try:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :])
        try:
            if fingerprint(directory) == before:
                assert np.array_equal(rewards(directory), expected), f"{file.name} at {place}"
        except ModelError:
            pass
    finally:
        file.write_bytes(whole)


@pytest.fixture(scope="module")
def expected(directory) -> np.ndarray:
    return rewards(directory)


# few where no hash covers the file, since each of these loads the model
@pytest.mark.slow
@settings(max_examples=6)
@given(data=st.data(), offset=st.integers(0, 2**16), value=st.integers(1, 255))
def test_no_reward_depends_on_a_byte_that_no_fingerprint_covers(directory, expected, data, offset, value):
    others = [file for file in files_of(directory) if str(file.relative_to(directory)) in OTHERS]
    assert_seen_or_without_effect(directory, data.draw(st.sampled_from(others)), offset, value, expected)


@settings(max_examples=60)
@given(data=st.data(), offset=st.integers(0, 2**16), value=st.integers(1, 255))
def test_any_byte_of_a_file_that_is_read_moves_the_fingerprint(directory, expected, data, offset, value):
    hashed = [file for file in files_of(directory) if str(file.relative_to(directory)) not in OTHERS]
    file = data.draw(st.sampled_from(hashed))
    assert_seen_or_without_effect(directory, file, offset, value, expected)
