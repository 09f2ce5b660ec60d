"""Texts and their tokens: splits, columns, labels, packing, and clear errors."""

import json

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from transformers import AutoTokenizer

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
