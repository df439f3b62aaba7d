"""The report in a real browser: it works, nothing of a run runs, and nothing leaves the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from astra_accel.cli import main
from astra_accel.files.tables import write_table
from astra_accel.files.text import visible
from astra_accel.report.collect import RunReader
from astra_accel.report.conversations import MAX_TEXT
from astra_accel.report.watch import write_report
from tests.helpers.browser import CHROMIUM, Page, browser_page
from tests.helpers.written_runs import HOSTILE, write_evaluation, write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian's package is called chromium)")

COUNT = "document.getElementById('count').textContent"
EVERY, WAIT = 3600.0, 60.0
NUM_SHOWN = "document.querySelectorAll('.episode').length"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was evaluated on 70 prompts, the first of which met with hostile responses, and of another."""
    folder = tmp_path_factory.mktemp("report")
    first, second = write_run(folder / "<b>one"), write_run(folder / "two", seed=1)
    write_evaluation(first / "evaluation", 70, HOSTILE)
    page = folder / "report.html"
    assert main(["report", str(first), str(second), "--output", str(page)]) == 0
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser_page(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def choose(page: Page, name: str, value: str) -> None:
    """Fill in a field as a person would."""
    page.evaluate(
        f"(() => {{ const field = document.forms[0].elements.namedItem('{name}'); field.value = '{value}'; "
        "field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def open_all(page: Page) -> list[str]:
    """Unfold every conversation that is listed; the texts that are to be seen then."""
    page.evaluate(
        "(() => { document.querySelectorAll('details').forEach((one) => { one.open = true; }); "
        "return new Promise((done) => setTimeout(done, 300)); })()"
    )
    return page.evaluate("[...document.querySelectorAll('.said')].map((one) => one.textContent)")


def test_hostile_texts_are_looked_at_and_nothing_runs(page: Page, report: Path) -> None:
    page.open(report, "#score=0.9")
    title = page.evaluate("document.title")
    assert "<b>one" in title
    assert page.evaluate(COUNT) == f"{len(HOSTILE)} episodes match"
    assert page.evaluate("document.querySelectorAll('.said').length") == 0  # folded
    said = open_all(page)
    for text in HOSTILE:
        shown = visible(text.encode("utf-8", "replace").decode("utf-8"))
        assert said.count(shown) == 2, text
    made = page.evaluate("[...new Set([...document.querySelectorAll('#episodes *')].map((one) => one.tagName))]")
    assert set(made) == {"DETAILS", "SUMMARY", "SPAN", "BR", "SMALL", "DIV", "B"}
    # What an attribute or an address would do, it does when it is touched.
    page.evaluate(
        "document.querySelectorAll('#episodes *').forEach((one) => "
        "{ for (const name of ['mouseover', 'click', 'error']) one.dispatchEvent(new Event(name)); })"
    )
    assert page.evaluate("document.title") == title
    assert page.of("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    assert page.of("Log.entryAdded") == []


def test_nothing_is_asked_of_the_network(page: Page, report: Path) -> None:
    page.open(report)
    open_all(page)
    asked = [event["request"]["url"] for event in page.of("Network.requestWillBeSent")]
    assert asked == [report.as_uri()]
    # And if something got in, the page's policy would not let it: not even an image.
    page.evaluate("(() => { const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'; })()")
    page.evaluate("new Promise((done) => setTimeout(done, 200))")
    refused = [entry["entry"]["text"] for entry in page.of("Log.entryAdded")]
    assert any("Content Security Policy" in text for text in refused)


def test_filters_choose_conversations_and_more_come_on_demand(page: Page, report: Path) -> None:
    page.open(report)
    total = 70 + 3 * 4 + 3 * 4
    assert page.evaluate(COUNT) == f"{total} episodes match"
    assert page.evaluate(NUM_SHOWN) == 50
    page.evaluate("document.getElementById('more').click()")
    assert page.evaluate(NUM_SHOWN) == total
    assert page.evaluate("document.getElementById('more').hidden") is True
    choose(page, "source", "held-out")
    assert page.evaluate(COUNT) == "70 episodes match"
    choose(page, "score", "0.9")
    choose(page, "turn", "1")
    assert page.evaluate(COUNT) == f"{len(HOSTILE)} episodes match"
    choose(page, "turn", "2")
    assert page.evaluate(COUNT) == "0 episodes match"
    choose(page, "score", "")
    choose(page, "words", "SCRIPT")
    assert page.evaluate(COUNT) == f"{sum('script' in text for text in HOSTILE)} episodes match"
    choose(page, "words", "")
    choose(page, "turn", "")
    choose(page, "outcome", "success")
    failed = int(page.evaluate(COUNT).split()[0])
    choose(page, "outcome", "none")
    assert failed + int(page.evaluate(COUNT).split()[0]) == 70
    choose(page, "source", "training")
    choose(page, "outcome", "")
    choose(page, "run", "1")
    assert page.evaluate(COUNT) == "12 episodes match"


def test_the_tree_of_an_episode_hangs_together(page: Page, report: Path) -> None:
    page.open(report, "#source=training")
    open_all(page)
    first = "document.querySelector('.episode')"
    assert page.evaluate(f"{first}.querySelectorAll('.turn').length") == 14
    assert page.evaluate(f"{first}.querySelectorAll(':scope > .turn').length") == 2
    assert page.evaluate(f"{first}.querySelectorAll('.turn > .turn > .turn').length") == 8


def test_a_text_of_a_megabyte_is_shown_as_far_as_anybody_reads(page: Page, tmp_path: Path) -> None:
    run = write_run(tmp_path / "long")
    file = run / "rollouts" / "step-000001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0] |= {"response": "<b>&" * 250_000, "response_score": 0.95}
    write_table(file, rows)
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size < 1e6
    page.open(tmp_path / "report.html", "#score=0.9")
    (shown, *_) = (text for text in open_all(page) if text.startswith("<b>&"))
    assert shown == "<b>&" * (MAX_TEXT // 4) + " … (980,000 more characters)"


def test_filters_stand_in_the_address_for_others_to_open(page: Page, report: Path) -> None:
    page.open(report)
    choose(page, "outcome", "success")
    choose(page, "words", "a & b")
    fragment = page.evaluate("location.hash")
    page.open(report, fragment)
    chosen = "document.forms[0].elements.namedItem('{}').value"
    assert page.evaluate(chosen.format("outcome")) == "success"
    assert page.evaluate(chosen.format("words")) == "a & b"
    assert page.of("Log.entryAdded", "Runtime.exceptionThrown") == []


# --- A run that continues ---------------------------------------------------------------------------------------------


def at(seconds: float, then: str = "") -> str:
    """The page's clock stands some seconds after this was first asked of it, whatever the machine is busy with."""
    return f"(() => {{ window.began ??= Date.now(); Date.now = () => window.began + {1000 * seconds}; {then} }})()"


@pytest.fixture
def live(tmp_path: Path) -> tuple[RunReader, Path]:
    """The reader of a run of three steps with 80 episodes each, and where its page is."""
    reader = RunReader(write_run(tmp_path / "run", episodes_a_step=80))
    write_report([reader.read()], tmp_path / "report.html", renewed_every=EVERY)
    return reader, tmp_path / "report.html"


def a_step_ends(reader: RunReader) -> None:
    """A fourth training step, with whose episodes the list of conversations is another."""
    other = write_run(reader.path.parent / "other", num_steps=4, episodes_a_step=80, seed=5)
    name = "rollouts/step-000004.parquet"
    (other / name).rename(reader.path / name)


def test_an_open_page_renews_itself_and_keeps_the_readers_place(page: Page, live: tuple[RunReader, Path]) -> None:
    reader, path = live
    page.open(path)
    choose(page, "source", "training")
    page.evaluate("document.getElementById('more').click()")
    unfolded = "[...document.querySelectorAll('.episode')].filter((one) => one.open).map((one) => one.dataset.key)"
    page.evaluate("document.querySelectorAll('.episode')[60].querySelector('summary').click()")
    (key,) = page.evaluate(unfolded)
    top = f"Math.round(document.querySelector('[data-key=\"{key}\"]').getBoundingClientRect().top)"
    page.evaluate(f"document.querySelector('[data-key=\"{key}\"]').scrollIntoView()")
    page.evaluate("scrollBy(0, -40)")
    before = page.evaluate(top)
    assert before == 40
    a_step_ends(reader)
    write_report([reader.read()], path, renewed_every=EVERY)
    assert page.loads_after(at(EVERY + 1), WAIT)
    assert page.evaluate(COUNT) == "320 episodes match"
    assert page.evaluate(unfolded) == [key]
    assert abs(page.evaluate(top) - before) <= 1
    assert page.evaluate("document.forms[0].elements.namedItem('source').value") == "training"
    assert page.of("Log.entryAdded", "Runtime.exceptionThrown") == []


def test_a_page_is_still_while_it_is_paused_or_filled_in(page: Page, live: tuple[RunReader, Path]) -> None:
    page.open(live[1])
    assert not page.loads_after(at(EVERY - 1), 1)
    typed = "document.forms[0].elements.namedItem('words').dispatchEvent(new Event('input', {bubbles: true}))"
    assert not page.loads_after(at(EVERY + 1, typed), 1)
    assert page.loads_after(at(EVERY + 5), WAIT)
    pressed = "document.getElementById('pause').click()"
    assert not page.loads_after(at(EVERY + 1, pressed), 1)
    assert page.loads_after(pressed, WAIT)


def test_the_last_page_of_a_run_renews_itself_no_more(page: Page, live: tuple[RunReader, Path]) -> None:
    reader, path = live
    page.open(path)
    write_report([reader.read()], path)
    assert page.loads_after(at(EVERY + 1), WAIT)
    assert not page.loads_after(at(EVERY + 1), 1)
    assert page.evaluate("document.getElementById('pause')") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 360])
def test_it_fits_and_can_be_read(page: Page, report: Path, scheme: str, width: int) -> None:
    """On a desk and on a phone, by day and by night: nothing wider than the screen, plots visible, text in contrast."""
    page.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    page.open(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate("[...document.querySelectorAll('svg')].map((one) => one.getBoundingClientRect().width)")
    assert len(sizes) == 7
    assert min(sizes) > 200
    colours = (
        "(() => {{ const style = getComputedStyle(document.body); return style.{}.match(/[0-9]+/g).map(Number); }})()"
    )
    ink, paper = (sum(page.evaluate(colours.format(name))) for name in ("color", "backgroundColor"))
    assert (ink < 150 and paper > 700) if scheme == "light" else (ink > 650 and paper < 120)


@pytest.mark.slow
def test_a_run_of_a_hundred_thousand_nodes_opens_at_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "long", num_steps=10, episodes_a_step=720)
    assert main(["report", str(run), "--output", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size < 20e6
    with browser_page(tmp_path / "profile") as page:
        seconds = page.open(tmp_path / "report.html")
        assert page.evaluate(COUNT) == "1500 episodes match"
    assert seconds < 3
