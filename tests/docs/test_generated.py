"""What pages are filled with from the code: complete, and read by whoever writes a configuration."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from astra_accel.algorithms import ALGORITHMS
from astra_accel.config import RewardConfiguration, RunConfiguration
from astra_accel.lazy import load
from astra_accel.scorers import SCORERS
from tests.helpers.documents import PAGES, ROOT

HOOKS = ROOT / "docs" / "hooks"


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    """The hook that MkDocs loads, with its own imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HOOKS))
        import generate

        yield generate


def rows(text: str) -> list[list[str]]:
    """The cells of each line of tables."""
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("| ")]
    return [line for line in cells if set(line) != {"---"}]


def part(text: str, title: str) -> str:
    """What stands under a heading."""
    return text.partition(f"# {title}\n")[2].partition("\n#")[0]


def test_every_field_is_in_the_reference_of_the_configuration(hooks: ModuleType) -> None:
    text = hooks.GENERATORS["configuration"]()
    anchors = set(re.findall(r'<a id="([\w.]+)">', text))

    def paths(values: dict, parent: str = "") -> list[str]:
        nested = [(f"{parent}{name}", value) for name, value in values.items()]
        return [
            path
            for name, value in nested
            for path in (paths(value, f"{name}.") if isinstance(value, dict) and value else [name])
        ]

    there_are = paths(json.loads(RunConfiguration().model_dump_json()))

    # Sections that are null by default have the anchors of their fields.
    sections = ["training.replay", "training.curriculum", "baseline", "rollout.few_shot", "evaluation.benign", "budget"]
    assert [path for path in there_are if path not in anchors] == sections
    assert {"training.replay.size", "baseline.path", "rollout.few_shot.examples", "budget.requests"} <= anchors
    assert all(len(line) == 4 and all(line) for line in rows(text))


@pytest.mark.parametrize(
    "line",
    [
        "| `lr` | number, > 0 | `0.003` | Learning rate of the optimizer. |",
        "| `max_grad_norm` | number, > 0 or `null` | `null` |",
        '| `optimizer` | `adam`, `adamw`, `sgd`, `rmsprop`, `adagrad` | `"adamw"` |',
        "| `top_p` | number, > 0, ≤ 1 | `1.0` |",
        "| `output_dir` | path or `null` | `null` |",
        "| `log_with` | list of text | `[]` |",
        '| `name` | `dpo`, `ipo`, `ctb`, `tb`, `mle`, `grpo`, `rloo`, `ppo` | `"dpo"` |',
        '| `source` | text, not empty | `"bundled"` |',
        '| `target_modules` | text or list of text | `"all-linear"` |',
    ],
)
def test_a_field_has_its_type_bounds_and_default(line: str, hooks: ModuleType) -> None:
    assert line in re.sub(r'<a id="[\w.]+"></a>', "", hooks.GENERATORS["configuration"]())


@pytest.mark.parametrize(("name", "registry"), [("algorithms", ALGORITHMS), ("scorers", SCORERS)])
def test_every_option_of_a_class_is_explained(name: str, registry: dict[str, str], hooks: ModuleType) -> None:
    text = hooks.GENERATORS[name]()

    for key, location in registry.items():
        table = rows(part(text, key).partition("| option | type")[2])
        options = [option for option in inspect.signature(load(location)).parameters if option != "system"]
        assert [line[0].strip("`") for line in table] == options
        assert [line for line in table if len(line) != 4 or not line[3] or line[3].startswith("see ")] == []


def test_every_weight_has_its_term(hooks: ModuleType) -> None:
    text = hooks.GENERATORS["terms"]()
    weights = [name for name in RewardConfiguration.model_fields if name.endswith("_weight")]

    assert re.findall(r"Weight: `reward\.(\w+)`", text) == weights


def test_figures_are_those_of_the_results(hooks: ModuleType) -> None:
    text = hooks.GENERATORS["benchmarks"]()
    result = json.loads((ROOT / "benchmarks" / "results" / "rollout.json").read_text())
    found = dict(rows(part(text, "rollout"))[1:])

    assert result["machine"]["processor"] in part(text, "rollout")
    assert found["ours"] == f"{result['medians']['ours']:.4g} s"


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        (1234.5678, "1235"),
        ("tokens 1 -> 2", "tokens 1 -> 2"),
        ({"value": 0.75, "low": 0.65, "high": 0.833333}, "0.75 [0.65, 0.8333]"),
        ({"value": 0.5, "low": None, "high": None}, "0.5"),
        ({"value": 0.41}, "0.41"),
    ],
)
def test_a_figure_is_a_number_with_or_without_an_interval_or_words(
    figure: object, shown: str, hooks: ModuleType
) -> None:
    assert sys.modules["benchmark_figures"]._shown(figure) == shown


def test_a_page_asks_for_nothing_that_is_not_made(hooks: ModuleType) -> None:
    asked = {name for page in PAGES for name in hooks.MARK.findall(page.read_text(encoding="utf-8"))}

    assert asked == set(hooks.GENERATORS)


def test_a_link_to_a_file_of_the_repository_leads_to_a_copy_of_it(hooks: ModuleType) -> None:
    import repository

    page = SimpleNamespace(file=SimpleNamespace(src_uri="write/scorer.md"))
    text = "[words](../../AGENTS.md#words) [a page](../concepts.md) [nothing](../../nowhere.py)"

    assert repository.on_page_markdown(text, page=page) == (
        "[words](../repository/AGENTS.md.txt#words) [a page](../concepts.md) [nothing](../../nowhere.py)"
    )


def test_docstrings_become_markdown(hooks: ModuleType) -> None:
    from docstrings import to_markdown

    text = "See :class:`~astra_accel.core.sampler.Graph` and `a page <https://example.org>`_::\n\n    code"

    assert to_markdown(text) == "See `Graph` and [a page](https://example.org):\n\n    code"


def test_a_build_needs_no_torch() -> None:
    code = "import sys, generate; [make() for make in generate.GENERATORS.values()]; print('torch' in sys.modules)"
    environment = {"PYTHONPATH": f"{HOOKS}:{ROOT}"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert (output.stdout.strip(), output.stderr) == ("False", "")
