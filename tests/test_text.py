"""Texts and their tokens: splits, columns, labels, packing, and clear errors."""

import json
import math

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer, EvalPrediction

from hf_saddle.demo import sources
from hf_saddle.demo.metrics import compute_perplexity
from hf_saddle.demo.text import load_text, pack, tokenize, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(load_text("python-docs")["train"]["text"], 300, enclose=False)


def test_passages_are_split_without_overlap():
    splits = load_text("python-docs", seed=1)
    found = [text for split in splits.values() for text in split["text"]]
    assert sum(map(len, found)) > 400_000
    assert len(splits["train"]) > 5 * len(splits["validation"])
    assert 'The "assert" statement' in "".join(found)


def test_chapters_are_in_every_split():
    splits = load_text("python-docs", labelled=True)
    for split in splits.values():
        assert set(split["label"]) == set(range(10))
    assert "formatstrings" in splits["train"].features["label"].names
    texts = [set(split["text"]) for split in splits.values()]
    assert sum(map(len, texts)) > 800


@pytest.mark.parametrize("text", ["for x in range(3): pass", "naïve – 文字 \t\n\n  🙂", ""])
def test_every_text_can_be_read_back(text, tokenizer):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_saved_tokenizer_is_found_again(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "An end of text follows."
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (again.eos_token, again.pad_token_id) == (tokenizer.eos_token, tokenizer.pad_token_id)


def test_classifiers_read_from_the_marks():
    enclosing = train_tokenizer(["some text"], 300, enclose=True)
    ids = enclosing("some text")["input_ids"]
    assert (ids[0], ids[-1]) == (enclosing.bos_token_id, enclosing.eos_token_id)


def test_a_vocabulary_without_room_for_all_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 260"):
        train_tokenizer(["x"], 259, enclose=False)


def test_blocks_are_the_texts_one_after_the_other(tokenizer):
    splits = load_text("python-docs", max_samples=5)
    blocks = pack(splits, tokenizer, 16)["train"]
    expected = []
    for text in splits["train"]["text"]:
        expected += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    tokens = [token for block in blocks for token in block["input_ids"].tolist()]
    assert tokens == expected[: len(expected) // 16 * 16]
    assert blocks[0]["labels"].equal(blocks[0]["input_ids"])


def test_too_little_text_for_a_block_is_refused(tokenizer):
    with pytest.raises(ValueError, match="not enough text for one block of 100000"):
        pack(load_text("python-docs", max_samples=2), tokenizer, 100_000)


def test_long_texts_are_cut_off(tokenizer):
    rows = tokenize(load_text("python-docs", labelled=True, max_samples=8), tokenizer, 12)["test"]
    assert max(map(len, rows["input_ids"])) == 12
    assert set(rows.column_names) >= {"input_ids", "attention_mask", "labels"}


ROWS = {"sentence": [f"sample {index}" for index in range(30)], "label": ["good", "bad", "good"] * 10}


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_file_of_labelled_texts(kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    getattr(Dataset.from_dict(ROWS), f"to_{kind}")(path)
    splits = load_text(str(path), labelled=True)
    label = splits["train"].features["label"]
    assert label.names == ["bad", "good"]
    assert {name: len(split) for name, split in splits.items()} == {"train": 21, "validation": 3, "test": 6}
    given = dict(zip(ROWS["sentence"], ROWS["label"], strict=True))
    assert all(given[row["text"]] == label.int2str(row["label"]) for split in splits.values() for row in split)


def test_a_file_of_lines(tmp_path):
    (tmp_path / "poem.txt").write_text("one\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\nten\n")
    assert sum(map(len, load_text(str(tmp_path / "poem.txt")).values())) == 10


def test_columns_are_named_where_there_is_a_choice(tmp_path):
    columns = {"question": ["a", "b"] * 10, "answer": ["c"] * 20, "topic": [3, 1] * 10}
    path = tmp_path / "rows.jsonl"
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="one text column: name it by `text_column`"):
        load_text(str(path))
    with pytest.raises(ValueError, match="no column 'title'; it has question, answer, topic"):
        load_text(str(path), text_column="title")
    splits = load_text(str(path), labelled=True, text_column="answer", label_column="topic")
    assert splits["train"].features["label"].names == ["1", "3"]


def test_hidden_test_labels_are_not_taken_for_a_class(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    for split, labels in (("train", [0, 1] * 20), ("test", [-1] * 4)):
        rows = {"text": [f"{split} {index}" for index in range(len(labels))], "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    splits = load_text(str(tmp_path), labelled=True)
    assert set(splits["test"]["label"]) == {0, 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [("scores.csv", "not classes"), ("rows.xyz", "none of .csv"), ("nobody/nothing", "python-docs")],
)
def test_what_cannot_be_read_is_refused(name, message, tmp_path):
    (tmp_path / "scores.csv").write_text("text,label\na,0.5\nb,0.25\n")
    (tmp_path / "rows.xyz").write_text("")
    path = tmp_path / name
    with pytest.raises(ValueError, match=message):
        load_text(str(path) if path.is_file() else name, labelled=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("latin.csv", "text,label\ncafé,good\n".encode("latin-1"), r"latin\.csv' cannot be read: .*utf-8"),
        ("ragged.csv", b"text,label\na,good\nb,bad,worse\n", r"cannot be read: .*Expected 2 fields in line 3"),
        ("broken.json", b'{"text": "a", ', r"cannot be read: .*JSON"),
        ("broken.parquet", b"no parquet", r"broken\.parquet' cannot be read"),
        ("empty.json", b"", r"empty\.json is empty"),
        ("head.csv", b"text,label\n", r"head\.csv' cannot be read"),
        ("gap.csv", b"text,label\n,good\nb,bad\n,bad\n", "no text in 2 of 3 rows of 'train'"),
        ("blank.csv", b"text,label\na,good\nb,\nc,bad\n", "no label in 1 of 3 rows of 'train'"),
        ("number.csv", b"text,label\na,1\nb,\nc,2\n", "no label in 1 of 3 rows of 'train'"),
        ("lists.json", b'[{"text": "a", "label": ["x", "y"]}, {"text": "b", "label": ["y"]}]', "not classes"),
        ("rare.csv", b"text,label\n" + b"a,good\n" * 20 + b"b,rare\n", r"rare\.csv'.*split 'test'.*'rare' has 1"),
        ("few.csv", b"text,label\na,1\nb,2\nc,3\na,1\nb,2\nc,3\n", "6 samples of 3 classes"),
        ("one.txt", b"one\n", r"one\.txt'.* it has 1 samples"),
    ],
)
def test_what_is_wrong_with_data_is_named(file, content, message, tmp_path):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_text(str(tmp_path / file), labelled=not file.endswith(".txt"))


def test_what_is_no_file_is_not_asked_to_be_in_utf_8(monkeypatch):
    def refused(*arguments, **options):
        raise ValueError("BuilderConfig 'fr' not found.")

    monkeypatch.setattr(sources, "load_dataset", refused)
    with pytest.raises(ValueError, match=r"'nobody/nothing' cannot be read: BuilderConfig 'fr' not found\.$"):
        load_text("nobody/nothing", dataset_config="fr")


def test_the_case_of_an_ending_is_nothing(tmp_path):
    (tmp_path / "ROWS.CSV").write_text("text,label\n" + "a,good\nb,bad\n" * 10)
    assert sum(map(len, load_text(str(tmp_path / "ROWS.CSV"), labelled=True).values())) == 20


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text_column": "review", "label_column": "review"}, "The column 'review' of .* is what is classified"),
        ({"text_column": "stars"}, "The column 'stars' of .* has no text"),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(columns, message, tmp_path):
    (tmp_path / "rows.csv").write_text("review,stars,label\n" + "a,1,x\nb,2,y\n" * 10)
    with pytest.raises(ValueError, match=message):
        load_text(str(tmp_path / "rows.csv"), labelled=True, **columns)


def test_hidden_test_labels_may_be_blank(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "a,good\nb,bad\n" * 20)
    (tmp_path / "test.csv").write_text("text,label\nhidden,\nhidden,\n")
    splits = load_text(str(tmp_path), labelled=True)
    assert "hidden" not in splits["test"]["text"] and splits["train"].features["label"].names == ["bad", "good"]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, None] * 20, [0, 1], "no label in 20 of 40 rows of 'train'"),
        ([0, 1, -1, 1] * 10, [0, 1], "no label in 10 of 40 rows of 'train'"),
        ([0, 1] * 20, [0, None, -1], "no label in 2 of 3 rows of 'test'"),
    ],
)
def test_classes_that_some_rows_lack_are_refused(train, test, message, tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    for split, labels in (("train", train), ("test", test)):
        rows = {"text": ["a"] * len(labels), "label": labels}
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=message):
        load_text(str(tmp_path), labelled=True)


def test_minus_one_is_a_class_where_it_is_a_plain_number(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\n" + "a,-1\nb,1\n" * 10)
    assert load_text(str(tmp_path / "rows.csv"), labelled=True)["train"].features["label"].names == ["-1", "1"]


@pytest.mark.parametrize(("losses", "perplexity"), [([1.0, 3.0], math.exp(2.0)), ([709.0, 711.0], math.inf)])
def test_the_perplexity_of_a_training_that_diverges_is_infinite(losses, perplexity):
    found = compute_perplexity(EvalPrediction(predictions=None, label_ids=None, losses=np.array(losses)))
    assert found == {"perplexity": perplexity}
