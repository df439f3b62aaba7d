"""Texts of models are looked at and nothing else."""

from __future__ import annotations

import json

import pytest

from astra_accel.files.text import embedded_json, markdown_block, markdown_line, shortened, visible
from tests.helpers.written_runs import HOSTILE


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with\ttabs\nand lines: café 猫 👋", "plain, with\ttabs\nand lines: café 猫 👋"),
        ("\x1b[31mred\x07\x7f\r", "␛[31mred␇␡␍"),
        ("a\u202eb\u2066c\u200f", "a[U+202E]b[U+2066]c[U+200F]"),
        ("\ud83d half", "[U+D83D] half"),
        ("\u2028\x85\ufeff\u200b", "[U+2028][U+0085][U+FEFF][U+200B]"),
    ],
)
def test_what_would_act_is_named(text, shown):
    assert visible(text) == shown
    visible(text).encode("utf-8")


@pytest.mark.parametrize("text", HOSTILE)
def test_json_in_a_script_element_neither_ends_it_nor_begins_a_comment(text):
    embedded = embedded_json({"text": text})
    assert not {"<", ">", "&"} & set(embedded)
    assert embedded.isascii()
    assert json.loads(embedded) == {"text": text}


def test_a_megabyte_is_cut_and_how_much_is_told():
    assert shortened("x" * 1_000_000, 20) == "x" * 20 + " … (999,980 more characters)"
    assert shortened("short", 20) == "short"


def test_markdown_has_no_markup_of_a_text():
    assert markdown_line("a | b\n# <b> [x](y) `z` *w* _v_") == r"a \| b \# \<b\> \[x\](y) \`z\` \*w\* \_v\_"
    block = markdown_block("```\n</details>\n\n# no heading\x1b")
    assert block == "    ```\n    </details>\n    \n    # no heading␛"
