"""Manifests, indices and plans that cannot be meant are named, by file or by field."""

import json

import pytest
from fuzz_cases import make_folder, make_model

from hf_saddle.growth import GrowthPlan
from hf_saddle.models.json_files import parse_json
from hf_saddle.training.resuming.checkpoints import missing_parts


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / "model", sharded=True)
    return tmp_path / "model"


@pytest.mark.parametrize("text", ['{"files": []}', '{"files": {}}', "null", "{}", "3", "{", "[" * 9999, ""])
def test_a_manifest_that_is_none(text, folder):
    assert missing_parts(folder) == []
    (folder / "checkpoint_manifest.json").write_text(text)
    assert missing_parts(folder) == ["checkpoint_manifest.json"]


@pytest.mark.parametrize("text", ["null", "{}", "3", "{", '{"metadata": {}, "weight_map": {"a": "../b.safetensors"}}'])
def test_without_a_manifest_a_damaged_index_is_missing(text, folder):
    (folder / "checkpoint_manifest.json").unlink()
    assert "model.safetensors.index.json" not in missing_parts(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in missing_parts(folder)


def test_a_plan_lacks_a_field():
    values = json.loads(make_model()[1].to_json())
    for name in values:
        with pytest.raises(ValueError, match=f"`{name}`"):
            GrowthPlan.from_json(json.dumps({key: value for key, value in values.items() if key != name}))
    first = values["growths"][0]
    for name in first:
        growth = {key: value for key, value in first.items() if key != name}
        with pytest.raises(ValueError, match=f"`growths` has the wrong fields: it lacks `{name}`"):
            GrowthPlan.from_json(json.dumps(values | {"growths": [growth]}))
        if name != "linear" and name != "operator" and "directions" not in name:
            with pytest.raises(ValueError, match=rf"`growths\.{name}` must be .*, got 'x'"):
                GrowthPlan.from_json(json.dumps(values | {"growths": [first | {name: "x"}]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "levels deep"),
        ('{"a":' * 40 + "1" + "}" * 40, "levels deep"),
        ('{"a": ' + "9" * 5000 + "}", "more than 64 bits"),
        ('{"a": 9223372036854775808}', "more than 64 bits"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": -Infinity}', "not finite"),
        ('{"a": NaN}', "not finite"),
        ('{"a": 1, "b": 2, "a": 1}', "the name 'a' is there twice"),
        ('{"a": [{"b": 1, "b": 2}]}', "the name 'b' is there twice"),
        (b"\xff", "not valid JSON"),
        ("null", "must be a JSON object, got NoneType"),
    ],
)
def test_json_that_cannot_be_used(text, message):
    with pytest.raises(ValueError, match=f"The file x.*{message}"):
        parse_json(text, "The file x")


def test_json_that_can():
    assert parse_json('{"a": [-9223372036854775808, 0.5, null, "é"]}', "x") == {"a": [-(2**63), 0.5, None, "é"]}
