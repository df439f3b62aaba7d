"""The examples of the documents run: all blocks of a page, one after the other, as one program."""

from __future__ import annotations

from pathlib import Path

import pytest

from astra_accel import HFASTSystem, RunConfiguration
from astra_accel.config import RolloutConfiguration, SamplingConfiguration
from tests.helpers.documents import PAGES, ROOT, blocks, name_of
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import TINY_DPO, launch

# Its examples need a hub and runs; `tests/end_to_end/test_share.py` does what they do.
SHARING = "docs/sharing.md"
# Its examples read the run that a YAML file makes.
READS_A_RUN = "docs/run_files.md"
# Nothing in an example is about how long turns are, and short ones take no time.
SHORT = SamplingConfiguration(max_new_tokens=4)
PROGRAMS = [page for page in PAGES if name_of(page) != SHARING and any(block.run for block in blocks(page, "python"))]


def test_the_pages_on_writing_ones_own_are_among_those_that_run() -> None:
    assert {f"docs/write/{name}.md" for name in ("scorer", "reward_term", "system", "algorithm")} <= {
        name_of(page) for page in PROGRAMS
    }


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if name_of(page) == READS_A_RUN:
        trained = launch("train.py", "--config", TINY_DPO, "--training.output_dir", tmp_path / "runs" / "tiny_dpo")
        assert trained.returncode == 0, trained.stderr
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setitem(
        HFASTSystem.__init__.__kwdefaults__, "rollout", RolloutConfiguration(tester=SHORT, target=SHORT)
    )
    reset_accelerate()
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        if block.run:
            code = "\n" * (block.line - 1) + block.code  # so that an error names the line of the page
            exec(compile(code, str(page), "exec", dont_inherit=True), names)


@pytest.mark.parametrize(
    ("page", "text"),
    [
        pytest.param(page, block.code, id=f"{name_of(page)}:{block.line}")
        for page in PAGES
        for block in blocks(page, "yaml")
    ],
)
def test_a_configuration_in_a_page_loads(page: Path, text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")

    assert RunConfiguration.load(tmp_path / "run.yaml") != RunConfiguration()
