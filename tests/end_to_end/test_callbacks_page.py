"""The script that ``docs/callbacks.md`` is."""

import json
import re
import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT, metrics

PAGE = ROOT / "docs" / "callbacks.md"


@pytest.mark.slow
def test_what_the_page_says_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    (tmp_path / "examples").symlink_to(ROOT / "examples")

    result = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert re.search(r"stopped after [1-9]\d* training steps", result.stdout)
    tracked = json.loads((tmp_path / "runs" / "tracked" / "astra_accel.json").read_text())
    assert tracked["configuration"]["training.num_episodes_per_experience"] == 2
    assert [figures["loss"] for figures in tracked["figures"]] == [
        line["loss"] for line in metrics(tmp_path / "runs" / "tracked")
    ]
    assert {row["turn"] for row in tracked["samples"]} == {1, 2}
    assert all("worst_response_score" in line for line in metrics(tmp_path / "runs" / "quiet"))
