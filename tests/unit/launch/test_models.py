"""Does the user's name for a model lead to the right directory, or to an error that says what to do?"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]  # not in its __all__
from transformers import AutoModelForCausalLM, AutoTokenizer

from launch import models
from launch.errors import ModelUnavailable
from launch.models import DEFAULT_MODEL, default_cache_dir, resolve
from launch.progress import silent

HOME = Path("/home/someone")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"KVRELAY_CACHE": "/fast/kv", "XDG_CACHE_HOME": "/xdg"}, "/fast/kv"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/kvrelay"),
        ({"XDG_CACHE_HOME": "relative/does/not/count"}, "/home/someone/.cache/kvrelay"),
        ({"KVRELAY_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/someone/.cache/kvrelay"),
        ({}, "/home/someone/.cache/kvrelay"),
    ],
)
def test_cache_directory(environ: dict[str, str], expected: str) -> None:
    assert default_cache_dir(environ, HOME) == Path(expected)


def test_a_local_directory_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path), tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=re.escape("config.json")):
        resolve(str(tmp_path), tmp_path / "cache")


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_model(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="neither"):
        resolve(str(tmp_path / "nowhere"), tmp_path / "cache")


def test_only_the_files_that_transformers_reads_come_from_the_hub() -> None:
    wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "chat_template.jinja", "merges.txt"]
    unwanted = ["pytorch_model.bin", "consolidated.safetensors", "original/params.json", "onnx/model.onnx", "run.py"]
    kept = filter_repo_objects(
        [*wanted, *unwanted], allow_patterns=models._HUB_FILES, ignore_patterns=models._HUB_OTHER_FORMATS
    )
    assert list(kept) == wanted


def _resolve_elsewhere(model: str, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub library reads its environment when it is imported."""
    code = (
        "import sys; from pathlib import Path; from launch.models import resolve; from launch.errors import *\n"
        "try: print(resolve(sys.argv[1], Path(sys.argv[2])))\n"
        "except ModelUnavailable as error: sys.exit(str(error))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, model, str(home)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HOME": str(home), **environ},
        cwd=Path(__file__).parents[3],
    )


@pytest.mark.parametrize("environ", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_without_network_a_hub_model_is_a_clear_error(tmp_path: Path, environ: dict[str, str]) -> None:
    done = _resolve_elsewhere("someone/some-model", tmp_path, **environ)
    assert done.returncode == 1
    assert "Without network use 'smollm2-135m-instruct' or a local directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_network_a_hub_model_of_an_earlier_run_is_found(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--some-model"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    done = _resolve_elsewhere("someone/some-model", tmp_path, HF_HUB_OFFLINE="1")
    assert done.stdout.strip() == str(snapshot), done.stderr


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return resolve(DEFAULT_MODEL, tmp_path_factory.mktemp("cache"), silent)


@pytest.mark.slow
def test_the_default_model_answers_a_question(smollm2: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2)
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    output = model.generate(**prompt, do_sample=False, max_new_tokens=16)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_default_tokenizer_splits_as_llama_cpp_does(smollm2: Path) -> None:
    """Pre-tokenizer `smollm`: digits alone, a space before a word belongs to it, English contractions apart."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    text = "<|im_start|>user\nIn 2024 don't  pay \u20ac19.50!<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in ids if i != 0][:14] == (
        ["<|im_start|>", "user", "\n", "In", " ", "2", "0", "2", "4", " don", "'t", " ", " pay", " \u20ac"]
    )
    assert tokenizer("1234567890")["input_ids"] == [tokenizer.convert_tokens_to_ids(digit) for digit in "1234567890"]
