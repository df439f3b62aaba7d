"""A run of models with code of their own, from training to what is shared, never asking on the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.own_code import save_with_own_code
from tests.helpers.runs import metrics

CONFIG = """
training: {training_steps: 2, num_episodes_per_experience: 2, batch_size: 4, save_steps: 1, sample_steps: null}
tester: {path: TESTER, trust_remote_code: true}
target: {path: TARGET, trust_remote_code: true}
rollout: {tree_width: 2, tree_depth: 1, tester: {max_new_tokens: 6}, target: {max_new_tokens: 6}}
evaluation: {num_resamples: 20}
"""


@pytest.mark.slow
def test_trusted_models_are_trained_resumed_evaluated_and_exported(tmp_path: Path) -> None:
    for name, seed in (("tester", 0), ("target", 1)):
        save_with_own_code(tmp_path / name, seed=seed)
    config = tmp_path / "run.yaml"
    places = {name: str(tmp_path / name.lower()) for name in ("TESTER", "TARGET")}
    config.write_text(CONFIG.replace("TESTER", places["TESTER"]).replace("TARGET", places["TARGET"]))

    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "astra_accel.cli", *arguments],
            stdin=subprocess.DEVNULL,  # a question would fail
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, **environment},
        )

    run = tmp_path / "run"
    refused = command("train", "--config", str(config), "--target.trust_remote_code", "false")
    assert refused.returncode == 2
    assert "target.trust_remote_code" in refused.stderr
    assert "Traceback" not in refused.stderr
    steps = ["train", "--config", str(config), "--training.output_dir", str(run)]
    for arguments in (
        steps,
        [*steps, "--resume", str(run / "checkpoints" / "step-000002"), "--training.training_steps", "3"],
        ["evaluate", str(run)],
        ["export", str(run), "--merged", str(tmp_path / "merged")],
    ):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    assert [record["step"] for record in metrics(run)][-1] == 3
    assert (run / "evaluation" / "metrics.json").is_file()
    # The merged model goes with its code, and its card says that it has to be trusted.
    assert (tmp_path / "merged" / "modeling_own.py").is_file()
    for card in (run / "tester", tmp_path / "merged"):
        assert "from_pretrained(folder, trust_remote_code=True)" in (card / "README.md").read_text(encoding="utf-8")
