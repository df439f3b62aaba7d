import shutil
import subprocess

import pytest

from astra_accel.cli import main
from astra_accel.commands.completion import SHELLS

# As bash does when somebody presses the tab key: the words so far, the last of them begun.
PRESS_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
found=$(complete -p astra-accel)
function=${found##*-F }; function=${function%% *}
$function
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "script"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lines.append)
        assert main(["completion", "bash"]) == 0
    path.write_text("\n".join(lines))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ev"], {"evaluate"}),
        (["co"], {"compare", "completion"}),
        (["completion", ""], set(SHELLS)),
        (["train", "--res"], {"--resume"}),
        (["train", "--training.opt"], {"--training.optimizer"}),
        (["train", "--training.optimizer", "ad"], {"adam", "adamw", "adagrad"}),
        (["train", "--config", "run.yaml", "--algorithm.name", "g"], {"grpo"}),
        (["evaluate", "runs/one", "--rollout.tester.max"], {"--rollout.tester.max_new_tokens"}),
        (["train", "--accelerate-config", "zero"], {"zero1", "zero2", "zero3", "zero3_offload"}),
        (["init", "--algorithm", "d"], {"dpo"}),
        (["report", "--wat"], {"--watch"}),
    ],
)
def test_bash_completes(script, tmp_path, words, expected):
    command = ["bash", "--norc", "-c", PRESS_TAB, "bash", str(script), "astra-accel", *words]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)

    assert found.stderr == ""
    assert set(found.stdout.split()) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_files(script, tmp_path):
    (tmp_path / "run of today.yaml").touch()
    command = ["bash", "--norc", "-c", PRESS_TAB, "bash", str(script), "astra-accel", "train", "--config", "run"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)

    assert found.stdout == "run of today.yaml\n"


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_commands_and_fields(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("evaluate", "training.lr", "cosine_with_min_lr", "tree_width"):
        assert word in script
