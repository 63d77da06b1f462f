"""The report: the facts are on it, nothing is loaded from outside, and no text in it is markup."""

from __future__ import annotations

import ast
import html
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from reported import HOSTILE, SHA, make

import edgedistill.report
from edgedistill.errors import InfrastructureError
from edgedistill.report import ReportData, write_report
from edgedistill.specs import Verdict

VOID = frozenset(("meta", "link", "br"))


class Page(HTMLParser):
    """Tags with their attributes, the visible text, and whether every tag is closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def having(self, attribute: str) -> Iterator[str]:
        return (attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes)


def read(folder: Path, data: ReportData) -> tuple[str, str]:
    page, text = write_report(folder, data)
    assert page.stat().st_size < 2_000_000
    return page.read_text(encoding="utf-8"), text.read_text(encoding="utf-8")


def test_the_facts_are_there(tmp_path: Path) -> None:
    source, text = read(tmp_path, make())
    for shown in (Page(source).text, text.replace("\\", "")):
        for fact in (
            "default for Google Pixel 8", "Not proven.", "latency (p95) was not measured on Google Pixel 8",
            "predicted 4.10 ms (80% interval 1.84 to 9.84 ms); limit 10 ms", "UNMEASURED", "PASS", "computed",
            "98.50%", "≥ 97.00%", "92.1%", "90.1% to 93.6%", "22,713,216", "1,912,330", "0.283", "45.2", "(shipped)",
            "ai-edge-litert 2.3.0", "performance", "99.96%", "0.03 of 11.8", "layers 12", "size_mb: 34 MB, limit 8 MB",
            "Chosen for quality.", "the int8 grid in the loop", "9,003", "14", "Apache-2.0", "2.13.0", SHA,
            "Exit code 0",
        ):  # fmt: skip
            assert fact in shown, fact


@pytest.mark.parametrize(
    ("size", "latency", "runner", "word", "sentence"),
    [
        (Verdict.PASS, Verdict.PASS, "host", "Yes", "meets its budget on this machine: all 3 lines pass"),
        (
            Verdict.PASS,
            Verdict.UNMEASURED,
            "adb",
            "Not proven",
            "2 of 3 lines pass and none fails, but latency (p95) was",
        ),
        (Verdict.PASS, Verdict.INCONCLUSIVE, "host", "Not proven", "was measured without a clear result"),
        (
            Verdict.FAIL,
            Verdict.UNMEASURED,
            "adb",
            "No",
            "file size is 1.98 MB, the limit is ≤ 8 MB; latency (p95) was not",
        ),
    ],
)
def test_the_first_sentence_says_whether_and_what_is_not_known(
    tmp_path: Path, size: Verdict, latency: Verdict, runner: str, word: str, sentence: str
) -> None:
    source, text = read(tmp_path, make(size=size, latency=latency, runner=runner))
    assert f"{word}." in Page(source).text
    assert sentence in Page(source).text
    assert sentence in text


def test_host_figures_are_called_host_figures(tmp_path: Path) -> None:
    source, text = read(tmp_path, make())
    assert "Measured on this host, not on Google Pixel 8" in Page(source).text
    assert "say nothing about Google Pixel 8" in Page(source).text
    assert "say nothing about Google Pixel 8" in text
    own, _ = read(tmp_path, make(runner="host", latency=Verdict.PASS))
    assert "not on" not in Page(own).text


def test_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    source, _ = read(tmp_path, make())
    page = Page(source)
    links = [*page.having("src"), *page.having("href"), *page.having("xlink:href"), *page.having("data")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not {"script", "iframe", "object", "embed", "img"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\((?!#)", source)


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    source, text = read(tmp_path, make(name=HOSTILE))
    page = Page(source)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "<script>alert(1)</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert not re.search("[\x00\x1b]", source + text)
    assert "\\<script\\>" in text
    assert not re.search(r"(?<!\\)<script", text)
    row = next(line for line in text.splitlines() if line.startswith("|") and "0.283" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 10  # nine cells: the label's own bar is not a border


def test_plots_are_well_formed_labelled_and_apart(tmp_path: Path) -> None:
    source, _ = read(tmp_path, make(name=HOSTILE))
    plots = re.findall(r"<svg.*?</svg>", source, flags=re.DOTALL)
    assert len(plots) == 8
    for plot in plots:
        root = ElementTree.fromstring(plot)
        labels = (root.get("aria-labelledby") or "").split()
        ids = {element.get("id"): element.text for element in root.iter()}
        assert root.get("role") == "img"
        assert all(ids[label] for label in labels)
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:href="|url\()#([^")]+)', source):
        assert used in ids
    assert not re.search("#0[1-7]0[1-7]0[1-7]", "".join(plots))  # every stand-in colour became the page's


def test_the_page_is_accessible(tmp_path: Path) -> None:
    source, _ = read(tmp_path, make())
    page = Page(source)
    assert ("html", {"lang": "en"}) in page.tags
    assert "width=device-width" in source
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert all(name in set(page.having("id")) for name in page.having("aria-labelledby") for name in name.split())


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_colours_have_contrast(tmp_path: Path) -> None:
    """WCAG AA: 4.5 to 1 for text, in light and in dark."""
    source, _ = read(tmp_path, make())
    for theme in re.findall(r":root \{(.*?)\}", source, flags=re.DOTALL):
        colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", theme))
        for ink, grounds in {
            "ink": ("page", "card", "accent-wash", "good-wash", "bad-wash", "open-wash"),
            "muted": ("page", "card", "accent-wash"), "accent": ("card", "accent-wash", "page"),
            "good": ("good-wash", "card"), "bad": ("bad-wash", "card"), "open": ("open-wash", "card"),
        }.items():  # fmt: skip
            for ground in grounds:
                lighter, darker = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
                assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ink, ground)


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    assert read(tmp_path, make()) == read(tmp_path, make())


def test_a_report_without_the_optional_parts(tmp_path: Path) -> None:
    full = make()
    chosen = full.plan.chosen.model_copy(update={"predictions": ()})
    bare = full.model_copy(update={
        "measurements": {}, "curves": (), "splits": (),
        "ledger": tuple(row.model_copy(update={"latency_p50_ms": None, "size_mb": None}) for row in full.ledger),
        "plan": full.plan.model_copy(update={"chosen": chosen, "candidates": (chosen,)}),
    })  # fmt: skip
    source, text = read(tmp_path, bare)
    assert "neither measured nor predicted" in Page(source).text
    assert "Host p50" not in html.unescape(source)
    assert "neither measured nor predicted" in text


def test_an_unwritable_folder_is_infrastructure(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="cannot write"):
        write_report(tmp_path / "missing", make())


def test_importing_the_report_draws_nothing() -> None:
    heavy = "('matplotlib', 'numpy', 'torch')"
    code = f"import sys, edgedistill.report; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    for path in Path(edgedistill.report.__file__).parent.glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
