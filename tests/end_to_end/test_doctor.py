"""`astra-accel doctor` on whole, poor and bare installations, and on configurations that would not start."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import pytest

from astra_accel.cli import main
from astra_accel.models.loading import model_files
from tests.helpers.runs import ROOT, TINY_DPO

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))
IN_PLACES = "import sys; sys.path[:0] = {places}; {before}from astra_accel.cli import main; sys.exit(main({arguments}))"


def in_installation(
    *arguments: str, packages: Path | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run the command where nothing is installed but what is in a folder."""
    places = [str(ROOT), *([] if packages is None else [str(packages)])]
    code = IN_PLACES.format(places=places, arguments=list(arguments), before=before)
    # -S: without the packages of this environment; -E: without those of its variables.
    return subprocess.run([sys.executable, "-S", "-E", "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All packages but torch."""
    folder = tmp_path_factory.mktemp("packages")
    for path in SITE_PACKAGES.iterdir():
        if not path.name.lower().startswith(("torch", "astra_accel")):
            (folder / path.name).symlink_to(path)
    return folder


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_a_bare_python_is_told_what_is_missing() -> None:
    result = in_installation("doctor")
    assert result.returncode == 1
    assert result.stderr == ""
    assert "A run can't start:" in result.stdout
    for package in ("torch", "accelerate", "transformers", "peft", "pydantic", "pyyaml"):
        assert f"  - {package}: missing; {sys.executable} -m pip install -e '{ROOT}'" in result.stdout


def test_one_package_that_is_missing_is_the_problem(without_torch: Path) -> None:
    result = in_installation("doctor", "--json", "--config", str(TINY_DPO), packages=without_torch)
    assert result.returncode == 1
    found = json.loads(result.stdout)
    assert found["problems"] == [f"torch: missing; {sys.executable} -m pip install -e '{ROOT}'"]
    assert found["machine"]["problem"].startswith("torch can't be imported")
    assert found["configuration"] == []


def test_a_package_that_is_there_and_can_not_be_imported_is_the_problem() -> None:
    result = in_installation(
        "doctor", "--json", packages=SITE_PACKAGES, before="sys.modules['torch'] = sys.modules['peft'] = None; "
    )
    assert result.returncode == 1
    torch, peft = json.loads(result.stdout)["problems"]
    assert torch.startswith("torch: installed, but Python finds no module torch")
    assert peft.startswith("peft: installed, but Python finds no module peft")


@pytest.mark.parametrize("command", [["train"], ["init", "-"], ["completion", "bash"]])
def test_other_commands_of_a_bare_python_point_at_the_doctor(command: list[str]) -> None:
    result = in_installation(*command)
    assert result.returncode == 2
    assert result.stderr.startswith("error: No module named")
    assert "`astra-accel doctor` says what is missing" in result.stderr


def test_this_installation_can_start_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = doctor(capsys)
    assert (code, found["problems"], found["hub"]) == (0, [], None)
    assert {package["name"] for package in found["required"]} >= {"torch", "peft"}
    assert {extra["name"] for extra in found["extras"]} >= {"profanity", "deepspeed", "detoxify"}
    assert {launch["name"] for launch in found["launches"]} >= {"cpu_1", "multi_gpu"}


def test_the_text_says_all_of_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("tester: {path: some/model}\n")
    assert main(["doctor", "--config", str(tmp_path / "run.yaml")]) == 0
    shown = capsys.readouterr().out
    for part in ("Packages", "Machine", "Extras", "Launches", "Configuration", "A run can start."):
        assert f"\n{part}" in shown
    assert "?   tester.path" in shown


USER_ERRORS = {
    "field": ("training: {learning_rate: 1}", ["training.learning_rate: unknown field"]),
    "several": (
        "prompts: {train: {source: nowhere.txt}}\nscorer: {name: profanity, options: {colour: red}}\n"
        "algorithm: {options: {betta: 1}}\ntester: {path: ./no/model}\n",
        ["tester.path: there is no folder ./no/model", "prompts.train: ", "scorer: ", "'colour'", "'betta'"],
    ),
    "replay": ("training: {replay: {}}\nalgorithm: {name: ppo}", ["algorithm: training.replay is set, but PPO learns"]),
    "trees": ("rollout: {tree_width: 1}", ["algorithm: tree_width is 1"]),
    "held-out prompts": ("prompts: {train: {source: p.txt}, dev: {source: p.txt}}", ["prompts.dev: "]),
    "held-out scorer": (
        "evaluation: {scorers: {insults: {name: detoxify, options: {colour: red}}}}",
        ["evaluation.scorers.insults: ", "'colour'"],
    ),
    "output folder": ("training: {output_dir: held}", ["training.output_dir: ", "already holds a run"]),
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_a_configuration_that_would_not_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(model_files.ModelFiles, "load", load)
    monkeypatch.chdir(tmp_path)
    text, expected = USER_ERRORS[name]
    Path("run.yaml").write_text(text)
    Path("p.txt").write_text("Good morning.\n")
    Path("held").mkdir()
    Path("held/metrics.jsonl").write_text("{}\n")
    before = sorted(tmp_path.rglob("*"))
    code, found = doctor(capsys, "--config", "run.yaml")
    assert code == 1
    for part in expected:
        assert any(part in problem for problem in found["problems"]), found["problems"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_scorer_without_its_package_comes_with_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "profanity_check", None)
    code, found = doctor(capsys, "--config", str(TINY_DPO))
    assert code == 1
    (problem,) = found["problems"]
    assert problem.startswith("scorer: profanity needs alt-profanity-check")
    assert f"-m pip install -e '{ROOT}[profanity]'" in problem


@pytest.mark.parametrize(
    ("module", "field", "expected"),
    [
        ("sacrebleu", "reward: {self_bleu_novelty_weight: 0.5}", "reward: self_bleu_novelty_weight needs sacrebleu"),
        ("bitsandbytes", "target: {path: tiny, quantization: nf4}", "target.quantization: target.quantization needs"),
        ("wandb", "training: {log_with: [wandb]}", "training.log_with: training.log_with has 'wandb', whose package"),
    ],
)
def test_what_a_field_needs_is_not_installed(
    module: str,
    field: str,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "run.yaml").write_text(f"tester: {{path: tiny}}\n{field}\n")
    code, found = doctor(capsys, "--config", str(tmp_path / "run.yaml"))
    assert code == 1
    (problem,) = found["problems"]
    assert problem.startswith(expected)


def test_a_configuration_that_would_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, found = doctor(capsys, "--config", str(TINY_DPO))
    assert (code, found["problems"]) == (0, [])
    assert all(check["good"] for check in found["configuration"])
    assert list(tmp_path.iterdir()) == []


def test_the_hub_is_asked_only_on_demand(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert doctor(capsys)[1]["hub"] is None
        assert asked == []
        assert doctor(capsys, "--hub")[1]["hub"] == f"{address} answers"
        server.shutdown()
    code, found = doctor(capsys, "--hub")
    assert code == 0
    assert found["hub"].startswith(f"{address} can't be reached: ")


def test_goals_and_harmless_requests_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    source = ROOT / "examples" / "goals.jsonl"
    config.write_text(
        f"tester: {{path: tiny}}\ntarget: {{path: tiny}}\nevaluation: {{benign: {{source: benign}}}}\n"
        f"prompts: {{train: {{source: {source}, split: 'train[:4]'}}, dev: null, test: null}}\n"
        f"rollout: {{format: chat, tester_instruction: 'Do {{goal}}'}}\n"
        f"training: {{output_dir: {tmp_path / 'run'}}}\n"
    )
    assert main(["doctor", "--config", str(config)]) == 0
    told = capsys.readouterr().out
    assert "4 goals of" in told
    assert "each conversation has one" in told
    assert "100 prompts of benign" in told
    judged = "scorer: {name: local_judge, options: {model: m, rubric: harmbench}}\n"
    config.write_text(config.read_text() + judged)
    assert main(["doctor", "--config", str(config)]) == 1
    assert "reward.combined_weight is 2, but the scorer judges by the goal" in capsys.readouterr().out
