"""The Kotlin and the Swift that ship in the bundle, compiled and run: they must cut text into the student's ids."""

import csv
import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "edgedistill" / "pipeline" / "snippets"
KOTLIN, SWIFT = SNIPPETS / "tflite" / "TextClassifier.kt", SNIPPETS / "coreml" / "TextClassifier.swift"
NASTY = [
    "",
    "   ",
    "Café ÀÉÎõü ñ a\u0301b",
    "日本語 テスト 漢字 한국어 문장 العربية",
    "㐀㐁 𠀀𠀁 𪜀𪜁 𫝀𫝁 𫠠𫠡 豈更 丽丸",
    "tab\tnew\nline\rreturn\u00a0space\u3000wide",
    "a\u200bb\ufeffc zero\0nul\ufffd private\ue000use \u0378",
    "emoji 😀👍 ＡＢＣ１２３ İstanbul straße ǅ",
    "$5.00!! (what?) [x]{y}~^`|<>=+ don't won’t “q”—dash",
    "x" * 150,
]
TOKENIZER = "/// BERT's text processing"
KOTLIN_MAIN = """
fun main(args: Array<String>) {
    val tokenizer = WordPiece(java.io.File(args[0]).readLines())
    java.io.File(args[1]).readText().split("\\u0001").forEach { println(tokenizer.encode(it, 64).joinToString(" ")) }
}
"""
SWIFT_MAIN = """
func parts(_ path: String, _ separator: Unicode.Scalar) throws -> [String] {
    let text = try String(contentsOfFile: path, encoding: .utf8).unicodeScalars
    return text.split(separator: separator, omittingEmptySubsequences: false).map(String.init)
}
let tokenizer = WordPiece(try parts(CommandLine.arguments[1], "\\n").dropLast())
for text in try parts(CommandLine.arguments[2], "\\u{1}") {
    print(tokenizer.encode(text, maxTokens: 64).map(String.init).joined(separator: " "))
}
"""


def texts(folder: Path) -> list[str]:
    """The held-out texts of the shipped data and nasty ones, also in `folder/texts` with 1 between them."""
    data = ROOT / "edgedistill" / "data" / "builtin" / "banking77" / "held_out.csv.gz"
    with gzip.open(data, "rt", encoding="utf-8", newline="") as file:
        found = [row[0] for row in csv.reader(file)][1:] + NASTY
    (folder / "texts").write_text("\x01".join(found), encoding="utf-8")
    return found


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expect_the_students_ids(texts: list[str], answers: str, bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    for text, line in zip(texts, answers.splitlines(), strict=True):
        assert [int(item) for item in line.split()] == tokenizer.encode(text).ids, text


@pytest.mark.slow
def test_the_kotlin_tokenizer_gives_the_same_ids(tiny_bundle: Path, tmp_path: Path) -> None:
    if not shutil.which("kotlinc"):
        pytest.skip("no Kotlin compiler: apt-get install kotlin")
    source = KOTLIN.read_text(encoding="utf-8")
    tokenizer_class = source[source.index("/** BERT's text processing") :]
    (tmp_path / "W.kt").write_text("import java.text.Normalizer\n" + tokenizer_class + KOTLIN_MAIN, encoding="utf-8")
    given = texts(tmp_path)
    run(tmp_path, "kotlinc", "W.kt", "-include-runtime", "-d", "w.jar")
    answers = run(tmp_path, "java", "-Dfile.encoding=UTF-8", "-jar", "w.jar", str(tiny_bundle / "vocab.txt"), "texts")
    expect_the_students_ids(given, answers, tiny_bundle)


@pytest.mark.slow
def test_the_swift_tokenizer_gives_the_same_ids(tiny_bundle: Path, tmp_path: Path) -> None:
    if not shutil.which("swiftc"):
        pytest.skip("no Swift compiler: swift.org/install, or apt-get install swiftlang (Debian 13 and later)")
    source = SWIFT.read_text(encoding="utf-8")
    program = "import Foundation\n" + source[source.index(TOKENIZER) :] + SWIFT_MAIN
    (tmp_path / "main.swift").write_text(program, encoding="utf-8")
    given = texts(tmp_path)
    run(tmp_path, "swiftc", "-O", "main.swift", "-o", "tokenize")
    answers = run(tmp_path, str(tmp_path / "tokenize"), str(tiny_bundle / "vocab.txt"), "texts")
    expect_the_students_ids(given, answers, tiny_bundle)


@pytest.mark.slow
def test_the_swift_file_compiles(tmp_path: Path) -> None:
    """Against Apple's framework on a Mac; elsewhere against declarations written down from its documentation."""
    if not shutil.which("swiftc"):
        pytest.skip("no Swift compiler: swift.org/install, or apt-get install swiftlang (Debian 13 and later)")
    shutil.copy(SWIFT, tmp_path)
    if sys.platform != "darwin":
        shutil.copy(Path(__file__).with_name("CoreML.swift"), tmp_path)
        module = ("-emit-module", "-module-name", "CoreML", "-parse-as-library", "-emit-module-path")
        run(tmp_path, "swiftc", *module, "CoreML.swiftmodule", "CoreML.swift")
    run(tmp_path, "swiftc", "-typecheck", "-warnings-as-errors", "-I", ".", SWIFT.name)
    broken = SWIFT.read_text(encoding="utf-8").replace("options.computeUnits", "options.computeUnit")
    (tmp_path / SWIFT.name).write_text(broken, encoding="utf-8")
    with pytest.raises(AssertionError, match="has no member 'computeUnit'"):
        run(tmp_path, "swiftc", "-typecheck", "-I", ".", SWIFT.name)
