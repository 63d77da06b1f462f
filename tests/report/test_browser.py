"""The pages as a browser shows them: no errors, no sideways scrolling on a phone, enough contrast, names for all parts.

Chromium renders each page in a frame as wide as a phone or a desktop; a script outside the frame measures it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from reported import HOSTILE, make, measurement

from edgedistill.catalog import load_target
from edgedistill.gate import CostFacts, Rule, budget_lines, compared, regression_lines
from edgedistill.report import write_gate, write_report
from edgedistill.specs import Artifact, Budget, GateReport, Launch, Side, Sustained, Verdict

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")

FRAME = """<!DOCTYPE html><meta charset="utf-8"><title>frame</title>
<iframe id="page" width="%d" height="900" style="border:0" srcdoc="%s"></iframe><script>
addEventListener("load", () => {
  const view = document.getElementById("page").contentWindow, page = view.document;
  const luminance = rgb => rgb.slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = numbers(view.getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const pale = [], wide = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const holder = node.parentElement, style = view.getComputedStyle(holder);
    const drawn = holder instanceof view.SVGElement;
    if (!node.data.trim() || holder.closest("title, desc, style") || !holder.getClientRects().length) continue;
    texts += 1;
    const [one, two] = [luminance(numbers(drawn ? style.fill : style.color)), luminance(ground(holder))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) pale.push([node.data.trim().slice(0, 40), ratio]);
  }
  for (const part of page.querySelectorAll("body *")) {
    const box = part.getBoundingClientRect();
    if (box.width && box.right > view.innerWidth + 1 && !part.closest(".scroll, thead")) wide.push(part.tagName);
  }
  const unnamed = [...page.querySelectorAll("svg, section, [role=region]")].filter(part => {
    const ids = (part.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    return !part.getAttribute("aria-label") && !(ids.length && ids.every(id => page.getElementById(id)?.textContent));
  }).map(part => part.outerHTML.slice(0, 60));
  const sentence = page.querySelector(".sentence").getBoundingClientRect();
  const found = {texts, pale, wide, unnamed, scroll: page.documentElement.scrollWidth, inner: view.innerWidth,
    smallest: Math.min(...[...page.querySelectorAll("body *")].filter(part => part.getClientRects().length
      && !(part instanceof view.SVGElement)).map(part => parseFloat(view.getComputedStyle(part).fontSize))),
    sentence: sentence.bottom};
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)}));
});
</script>"""


def shown(page: Path, width: int, folder: Path, *, dark: bool = False) -> dict[str, Any]:
    """What the browser measured, once it had no complaint about the page."""
    frame = folder / f"frame{width}.html"
    frame.write_text(FRAME % (width, html.escape(page.read_text(encoding="utf-8"), quote=True)), encoding="utf-8")
    assert CHROMIUM
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run([CHROMIUM, *flags, profile, f"--window-size={max(width, 500) + 40},1000", "--dump-dom",
                           frame.as_uri()], capture_output=True, text=True, timeout=200, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    measured = re.search("<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert measured, done.stdout[-500:]
    found: dict[str, Any] = json.loads(html.unescape(measured.group(1)))
    return found


def gate_files(folder: Path) -> Path:
    """A gate's page with every plot, a failed line and untrusted names."""
    old, new = measurement(1.0), measurement(1.3)
    long_run = Sustained(seconds=300, window_s=60, first_ms=1.0, last_ms=1.4, curve_ms=(1.0, 1.1, 1.2, 1.4))
    sides = [
        item.model_copy(update={"launch_medians_ms": tuple(0.99 * value for value in (1, 1.01, 1.02, 1, 1)),
                                "sustained": long_run}) for item in (old, new)
    ]  # fmt: skip
    sides[1] = sides[1].model_copy(update={"launch_medians_ms": tuple(1.2 * v for v in sides[0].launch_medians_ms)})
    comparison = compared(*sides, Rule(), interleaved=True, again=sides[0])
    name = HOSTILE.replace("\ud800", "")
    report = GateReport(
        edgedistill_version="0.1.0", bundle=f"/a/{name}", baseline="/b", target="pixel8", verdict=Verdict.FAIL,
        exit_code=3, checks=(*make().gate.checks, *regression_lines(comparison, Rule())), comparison=comparison,
    )  # fmt: skip
    paths = write_gate(folder, report)
    assert len(paths) == 6
    return folder / "gate.html"


def text_files(folder: Path) -> Path:
    """A gate's page of a file that makes text: a floor that is missed, a plot of tokens per second."""
    seen = measurement(1.0)
    launches = tuple(Launch(tokens_per_s={"prefill": 2000.0 + n, "decode": 18.0 + n / 10}) for n in range(5))
    seen = seen.model_copy(update={"launches": launches, "tokens_per_s": {"prefill": 2002.0, "decode": 18.2}})
    target = load_target("host").model_copy(update={"threads": seen.threads, "budget": Budget(decode_tokens_per_s=20)})
    artifact = Artifact(path="m.gguf", format="gguf", sha256=seen.artifact_sha256, size_mb=1.0)
    checks = budget_lines(target, target.budget, CostFacts(artifact=artifact, host=seen))
    assert [(check.name, check.verdict) for check in checks] == [("decode_tokens_per_s", Verdict.FAIL)]
    report = GateReport(
        edgedistill_version="0.1.0", bundle="/a/m.gguf", target="host", verdict=Verdict.FAIL, exit_code=3,
        checks=checks, measured=Side.of(seen),
    )  # fmt: skip
    write_gate(folder, report)
    assert "18.2 tokens/s" in (folder / "gate.md").read_text()
    assert "≥ 20 tokens/s" in (folder / "gate.md").read_text()
    assert "Speed of writing, each launch" in (folder / "gate.html").read_text()
    return folder / "gate.html"


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["build", "gate", "text"])
def test_a_page_is_readable(kind: str, width: int, tmp_path: Path) -> None:
    if kind == "build":
        page, _ = write_report(tmp_path, make(name=HOSTILE, runner="host", latency=Verdict.INCONCLUSIVE))
    else:
        page = gate_files(tmp_path) if kind == "gate" else text_files(tmp_path)
    assert page.stat().st_size <= 2_000_000
    found = shown(page, width, tmp_path, dark=kind == "gate" and width == 390)
    assert found["texts"] > (50 if kind != "text" else 20)
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["wide"] == []
    assert found["pale"] == []
    assert found["unnamed"] == []
    assert found["smallest"] >= 12
    assert found["sentence"] <= 600  # said before anybody scrolls
