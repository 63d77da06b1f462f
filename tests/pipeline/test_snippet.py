"""The Kotlin and the Swift that ship in the bundle: compiled, and run where what they call exists on this machine.

Their text processing must cut texts into the student's ids. llama.cpp is here, so the Swift for GGUF replays the
bundle's golden samples; Android and Core ML are not, and `stand_ins` declares what the other files call of them.
"""

import csv
import gzip
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
SNIPPETS = ROOT / "edgedistill" / "pipeline" / "snippets"
STAND_INS = Path(__file__).with_name("stand_ins")
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
KOTLIN_MAIN = """
package your.app

fun main(args: Array<String>) {
    val tokenizer = WordPiece(java.io.File(args[0]).readLines())
    java.io.File(args[1]).readText().split("\\u0001").forEach { println(tokenizer.encode(it, 64).joinToString(" ")) }
}
"""
SWIFT_MAIN = """
import Foundation

let files = try CommandLine.arguments.dropFirst().map { try Data(contentsOf: URL(fileURLWithPath: $0)) }
let tokenizer = WordPiece(lines(of: files[0]))
let texts = String(decoding: files[1], as: UTF8.self).unicodeScalars
for text in texts.split(separator: "\\u{1}", omittingEmptySubsequences: false) {
    print(tokenizer.encode(String(text), maxTokens: 64).map(String.init).joined(separator: " "))
}
"""
REPLAY_MAIN = """
import Foundation

print(try LlamaTextClassifier(folder: URL(fileURLWithPath: CommandLine.arguments[1])).replayGolden())
"""
KOTLIN = pytest.mark.skipif(not shutil.which("kotlinc"), reason="no Kotlin compiler: apt-get install kotlin")
SWIFT = pytest.mark.skipif(
    not shutil.which("swiftc"), reason="no Swift compiler: swift.org/install; Debian 13: apt-get install swiftlang"
)
pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """The held-out texts of the shipped data and nasty ones, also in a file with 1 between them."""
    data = ROOT / "edgedistill" / "data" / "builtin" / "banking77" / "held_out.csv.gz"
    with gzip.open(data, "rt", encoding="utf-8", newline="") as file:
        found = [row[0] for row in csv.reader(file)][1:] + NASTY
    (tmp_path / "texts").write_text("\x01".join(found), encoding="utf-8")
    return found


def expect_the_students_ids(texts: list[str], answers: str, bundle: Path) -> None:
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    for text, line in zip(texts, answers.splitlines(), strict=True):
        assert [int(item) for item in line.split()] == tokenizer.encode(text).ids, text


@KOTLIN
def test_the_kotlin_tokenizer_gives_the_same_ids(tiny_bundle: Path, tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "Main.kt").write_text(KOTLIN_MAIN, encoding="utf-8")
    source = str(SNIPPETS / "shared" / "WordPiece.kt")
    run(tmp_path, "kotlinc", "Main.kt", source, "-include-runtime", "-d", "w.jar")
    answers = run(tmp_path, "java", "-Dfile.encoding=UTF-8", "-jar", "w.jar", str(tiny_bundle / "vocab.txt"), "texts")
    expect_the_students_ids(texts, answers, tiny_bundle)


@KOTLIN
def test_the_kotlin_files_compile(tmp_path: Path) -> None:
    """All of a bundle's together, as an app that holds two formats would."""
    sources = [str(path) for folder in (STAND_INS, SNIPPETS) for path in sorted(folder.rglob("*.kt"))]
    run(tmp_path, "kotlinc", *sources, "-d", "classes")
    source = (SNIPPETS / "onnx" / "OnnxTextClassifier.kt").read_text(encoding="utf-8")
    broken = source.replace("tokenizer.encode", "tokenizer.encodes")
    (tmp_path / "Broken.kt").write_text(broken, encoding="utf-8")
    sources = [name for name in sources if "OnnxTextClassifier" not in name]
    with pytest.raises(AssertionError, match="unresolved reference: encodes"):
        run(tmp_path, "kotlinc", *sources, "Broken.kt", "-d", "broken")


@SWIFT
def test_the_swift_tokenizer_gives_the_same_ids(tiny_bundle: Path, tmp_path: Path, texts: list[str]) -> None:
    (tmp_path / "main.swift").write_text(SWIFT_MAIN, encoding="utf-8")
    shutil.copy(SNIPPETS / "shared" / "WordPiece.swift", tmp_path)
    run(tmp_path, "swiftc", "-O", "main.swift", "WordPiece.swift", "-o", "tokenize")
    answers = run(tmp_path, str(tmp_path / "tokenize"), str(tiny_bundle / "vocab.txt"), "texts")
    expect_the_students_ids(texts, answers, tiny_bundle)


@SWIFT
def test_the_swift_for_core_ml_compiles(tmp_path: Path) -> None:
    for source in (STAND_INS / "CoreML.swift", SNIPPETS / "shared" / "WordPiece.swift"):
        shutil.copy(source, tmp_path)
    source = (SNIPPETS / "coreml" / "TextClassifier.swift").read_text(encoding="utf-8")
    module = ("-emit-module", "-module-name", "CoreML", "-parse-as-library", "-emit-module-path")
    run(tmp_path, "swiftc", *module, "CoreML.swiftmodule", "CoreML.swift")
    check = ("swiftc", "-typecheck", "-warnings-as-errors", "-I", ".", "WordPiece.swift", "TextClassifier.swift")
    (tmp_path / "TextClassifier.swift").write_text(source, encoding="utf-8")
    run(tmp_path, *check)
    broken = source.replace("options.computeUnits", "options.computeUnit")
    (tmp_path / "TextClassifier.swift").write_text(broken, encoding="utf-8")
    with pytest.raises(AssertionError, match="has no member 'computeUnit'"):
        run(tmp_path, *check)


@SWIFT
def test_the_swift_for_gguf_replays_the_golden_samples(
    tiny_store: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    """With llama.cpp itself, built with the package that this project runs it by."""
    package = Path(pytest.importorskip("llama_cpp").__file__).parent
    bundle = tmp_path / "bundle"
    done = cli(
        "build", "--target", "pixel8", "--profile", "tiny", "--store", tiny_store, "--out", bundle,
        "--format", "gguf", "--quiet",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("LlamaTextClassifier.swift", "WordPiece.swift"):
        shutil.copy(bundle / name, tmp_path)
    (tmp_path / "main.swift").write_text(REPLAY_MAIN, encoding="utf-8")
    header, libraries = package.parent / "include" / "llama.h", package / "lib"
    (tmp_path / "module.modulemap").write_text(f'module llama {{ header "{header}" link "llama" export * }}\n')
    sources = ("main.swift", "LlamaTextClassifier.swift", "WordPiece.swift")
    linked = ("-L", str(libraries), "-Xlinker", "-rpath", "-Xlinker", str(libraries))
    run(tmp_path, "swiftc", "-I", ".", "-Xcc", f"-I{header.parent}", *sources, *linked, "-o", "replay")
    worst = float(run(tmp_path, str(tmp_path / "replay"), str(bundle)))
    assert worst <= 1e-4, "the same runtime computes the same"
    golden = bundle / "golden.json"
    golden.write_text(golden.read_text(encoding="utf-8").replace('"text": "', '"text": "not ', 1), encoding="utf-8")
    with pytest.raises(AssertionError, match="ids"):
        run(tmp_path, str(tmp_path / "replay"), str(bundle))
