"""The Kotlin that ships in the bundle, compiled and run: it must cut text into the ids the student was trained on."""

import csv
import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
SNIPPET = ROOT / "edgedistill" / "pipeline" / "snippets" / "tflite" / "TextClassifier.kt"
NASTY = [
    "",
    "   ",
    "Café ÀÉÎõü ñ a\u0301b",
    "日本語 テスト 漢字 한국어 문장 العربية",
    "tab\tnew\nline\rreturn\u00a0space\u3000wide",
    "a\u200bb\ufeffc zero\0nul\ufffd private\ue000use \u0378",
    "emoji 😀👍 ＡＢＣ１２３ İstanbul straße ǅ",
    "$5.00!! (what?) [x]{y}~^`|<>=+ don't won’t “q”—dash",
    "x" * 150,
]
MAIN = """
fun main(args: Array<String>) {
    val tokenizer = WordPiece(java.io.File(args[0]).readLines())
    java.io.File(args[1]).readText().split("\\u0001").forEach { println(tokenizer.encode(it, 64).joinToString(" ")) }
}
"""


@pytest.mark.slow
def test_the_kotlin_tokenizer_gives_the_same_ids(tiny_bundle: Path, tmp_path: Path) -> None:
    if not shutil.which("kotlinc"):
        pytest.skip("no Kotlin compiler: apt-get install kotlin")
    source = SNIPPET.read_text(encoding="utf-8")
    tokenizer_class = source[source.index("/** BERT's text processing") :]
    (tmp_path / "W.kt").write_text("import java.text.Normalizer\n" + tokenizer_class + MAIN, encoding="utf-8")
    compiled = subprocess.run(
        ["kotlinc", "W.kt", "-include-runtime", "-d", "w.jar"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    data = ROOT / "edgedistill" / "data" / "builtin" / "banking77" / "held_out.csv.gz"
    with gzip.open(data, "rt", encoding="utf-8", newline="") as file:
        texts = [row[0] for row in csv.reader(file)][1:] + NASTY
    (tmp_path / "texts").write_text("\x01".join(texts), encoding="utf-8")
    done = subprocess.run(
        ["java", "-Dfile.encoding=UTF-8", "-jar", "w.jar", str(tiny_bundle / "vocab.txt"), "texts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    tokenizer = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    for text, line in zip(texts, done.stdout.splitlines(), strict=True):
        assert [int(item) for item in line.split()] == tokenizer.encode(text).ids, text
