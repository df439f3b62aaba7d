"""Models with code of their own: refused with the file that would run, run where trusted, never asked about."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import dynamic_module_utils

from astra_accel.config import LoRAConfiguration, ModelConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.models.loading.model_files import find_model
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from astra_accel.models.roles import find_roles, load_roles
from tests.helpers.own_code import MODEL, save_with_own_code


@pytest.fixture(autouse=True)
def _own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the code go here, where no earlier test left any, and whoever asks on the terminal fails."""
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))

    def asked(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)


def model(folder: Path, *, trusted: bool = True) -> ModelConfiguration:
    return ModelConfiguration(path=str(folder), trust_remote_code=trusted)


def test_code_does_not_run_unless_it_is_trusted(tmp_path):
    ran = tmp_path / "ran"
    folder = save_with_own_code(tmp_path / "own", model=f"open({str(ran)!r}, 'w').close()\n{MODEL}")
    with pytest.raises(ConfigurationError) as error:
        find_model(model(folder, trusted=False), "target")
    assert str(error.value) == (
        f"target.path is {str(folder)!r}, which needs code of its own (AutoConfig: OwnConfig in configuration_own.py, "
        f"AutoModelForCausalLM: OwnForCausalLM in modeling_own.py) that would run on every process with your rights; "
        f"read it, and if you trust it set target.trust_remote_code to true"
    )
    assert not ran.exists()
    find_model(model(folder), "target")
    assert ran.exists()
    # A class that was loaded once is no permission for another role.
    with pytest.raises(ConfigurationError, match=r"target.trust_remote_code"):
        find_model(model(folder, trusted=False), "target")


def test_a_trusted_model_is_what_its_code_makes(tmp_path):
    found = find_model(model(save_with_own_code(tmp_path / "own", seed=3)), "tester")
    loaded = found.load(torch.float32)
    assert type(loaded).__name__ == "OwnForCausalLM"
    expected = build_tiny("llama", seed=3)[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_roles_are_trusted_one_by_one_and_share_weights_where_both_are(tmp_path):
    folder = save_with_own_code(tmp_path / "own")
    lora = LoRAConfiguration(target_modules=["q_proj"])
    with pytest.raises(ConfigurationError, match=r"target.trust_remote_code"):
        find_roles(model(folder), model(folder, trusted=False), None, lora)
    roles = load_roles(find_roles(model(folder), model(folder), None, lora), "cpu")
    assert type(roles.target.model).__name__ == "OwnForCausalLM"
    assert roles.target.model is roles.baseline.model is roles.tester.model


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package\n", "ImportError: .*no_such_package"),
        ("def broken(:\n", "SyntaxError: "),
        ("from .configuration_own import OwnConfig\n", "AttributeError: .*OwnForCausalLM"),
    ],
)
def test_code_that_fails_is_told_before_weights_load(tmp_path, code, message):
    folder = save_with_own_code(tmp_path / "own", model=code)
    with pytest.raises(ConfigurationError, match=rf"^tester.path is .*: the model's own code failed with {message}"):
        find_model(model(folder), "tester")


def test_code_that_is_not_there_is_told(tmp_path):
    folder = save_with_own_code(tmp_path / "own")
    (folder / "modeling_own.py").unlink()
    with pytest.raises(ConfigurationError, match=r"the model's own code failed with OSError: .*modeling_own.py"):
        find_model(model(folder), "tester")


def test_an_unknown_model_type_without_code_says_so(tmp_path):
    folder = save_with_own_code(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({name: value for name, value in config.items() if name != "auto_map"})
    )
    with pytest.raises(ConfigurationError, match=r"^tester.path is .*own_llama"):
        find_model(model(folder), "tester")


def test_where_transformers_has_the_model_itself_nothing_has_to_be_trusted(tmp_path):
    folder = save_tiny(tmp_path / "known", "llama")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "gone.Config", "AutoModelForCausalLM": "gone.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    found = find_model(model(folder, trusted=False), "tester")
    assert type(found.load(torch.float32)).__name__ == "LlamaForCausalLM"


def test_a_tokenizer_with_code_of_its_own_is_refused_and_trusted_likewise(tmp_path):
    folder = save_with_own_code(tmp_path / "own")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "OwnTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_own.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    assert type(find_model(model(folder), "tester").tokenizer).__name__ == "OwnTokenizer"
    known = save_tiny(tmp_path / "known", "llama")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((known / name).read_bytes())
    with pytest.raises(ConfigurationError, match=r"\(AutoTokenizer: OwnTokenizer in tokenization_own.py\)"):
        find_model(model(folder, trusted=False), "tester")
