"""Padding, ignored labels, samples of unequal length and windows: each sample counts for what it is."""

import pytest
import torch
from architecture_cases import family_case
from curvature_cases import EXACT
from torch import nn

from hf_saddle.curvature import CurvatureOperator, analyze_curvature
from hf_saddle.curvature.capture.capture import capture
from hf_saddle.curvature.capture.described import describe
from hf_saddle.curvature.capture.padding import rows_for_scale
from hf_saddle.curvature.loss import own_loss
from hf_saddle.curvature.ranks import Ranks
from hf_saddle.curvature.settings import Settings


LENGTHS = [3, 7, 5, 18, 6]
FIELDS = ("eigenvalue", "standard_error", "fit_eigenvalue", "response", "step", "gain")


def padded(lengths, width, side="right", seed=0):
    """Sequences of these lengths, padded to a width; labels are the tokens, -100 where there are none."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids, fill = torch.randint(3, 41, (length,), generator=generator), torch.zeros(width - length, dtype=torch.long)
        rows.append(torch.cat([ids, fill] if side == "right" else [fill, ids]))
    ids = torch.stack(rows)
    mask = (ids != 0).long()
    first = mask.cumsum(1) == 1  # which only padding would predict
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill((mask == 0) | first, -100)}


def sums(model, batch):
    """Loss of a sequence: the sum over its labels, in float64, so that padding and batches make no difference."""
    given = {name: value for name, value in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = nn.functional.pad(batch["labels"].clamp_min(0), (1, -1))
    logits, labels = model(**given).logits, batch["labels"]
    if not model.config.is_encoder_decoder and type(model).__name__.endswith(("CausalLM", "LMHeadModel")):
        logits, labels = logits[:, :-1], labels[:, 1:]
    total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)
    return total / len(labels)


def assert_same(actual, expected, tolerance):
    assert [(a.linear, a.criterion) for a in actual] == [(b.linear, b.criterion) for b in expected]
    assert actual.tokens == expected.tokens
    assert actual.loss == pytest.approx(expected.loss, rel=tolerance)
    for a, b in zip(actual, expected, strict=True):
        for name in FIELDS:
            left, right = getattr(a, name), getattr(b, name)
            scale = float(right.abs().max())
            torch.testing.assert_close(
                left, right, rtol=0, atol=tolerance * scale, msg=lambda text, a=a, n=name: f"{a.linear} {n} {text}"
            )


def cut(batch, rows, width):
    return {name: value[rows, :width].contiguous() for name, value in batch.items()}


@pytest.mark.thinned(3)
@pytest.mark.parametrize("whiten", [False, True], ids=["eigenvectors", "whitened"])
@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "t5 gated"])
def test_more_padding_changes_nothing(name, whiten):
    model = family_case(name).model
    criteria = ("width", "depth", "grad_norm")
    options = {"loss": sums, "solver": EXACT, "whiten": whiten}
    few, more = (analyze_curvature(model, [padded(LENGTHS, width)], criteria, **options) for width in (18, 31))
    assert_same(more, few, 1e-4 if name in ("llama", "t5 gated") else 1e-7)
    wide = padded(LENGTHS, 18)
    parts = [cut(wide, slice(0, 3), 7), cut(wide, slice(3, 5), 18)]
    assert_same(analyze_curvature(model, parts, criteria, **options), few, 1e-4 if name != "gpt2" else 1e-7)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_side_of_the_padding_does_not_matter(name):
    """With positions counted from the first token that is none, as in `generate`."""
    model = family_case(name).model
    model.set_attn_implementation("sdpa")  # eager attention makes NaN of rows without a key in float64

    def loss(model, batch):
        positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
        return sums(model, batch | {"position_ids": positions})

    options = {"loss": loss, "solver": EXACT, "whiten": True}
    right, left = (
        analyze_curvature(model, [padded(LENGTHS, 18, side)], ("width", "depth"), **options)
        for side in ("right", "left")
    )
    assert_same(left, right, 1e-4 if name == "llama" else 1e-7)


def test_padding_without_a_mask_is_part_of_the_input():
    model = family_case("bert").model
    batch = padded(LENGTHS, 18)
    del batch["attention_mask"]
    report = analyze_curvature(model, [batch], loss=sums)
    assert report.tokens == 5 * 18


@pytest.mark.parametrize("first", [0, 3])
def test_rows_for_scales_are_those_of_the_samples_without_padding(first):
    lengths = [70, 3, 33, 16, 0]
    mask = torch.arange(80) < torch.tensor(lengths)[:, None]
    rows = rows_for_scale(5, 80, first, mask, torch.device("cpu"))
    assert mask.flatten()[rows].all()
    expected = [
        rows_for_scale(1, length, first + sample, None, rows.device).sort().values + 80 * sample
        for sample, length in enumerate(lengths)
        if length
    ]
    assert torch.equal(rows.sort().values, torch.cat(expected))


@pytest.mark.parametrize("name", ["t5 gated"])
def test_encoder_and_decoder_have_masks_of_their_own(name):
    """Also where both have the same number of positions; keys of the cross attention are at those of the encoder."""
    model = family_case(name).model
    batch = padded(LENGTHS, 18)
    batch["labels"] = batch["labels"].flip(0)  # other lengths than those of what is read
    report = analyze_curvature(model, [batch], ("width", "depth"), loss=sums, solver=EXACT)
    wide = {key: nn.functional.pad(value, (0, 5 if key != "labels" else 0), value=0) for key, value in batch.items()}
    other = analyze_curvature(model, [wide], ("width", "depth"), loss=sums, solver=EXACT)
    assert_same(other, report, 1e-4)


def forms(model, batches, loss, linears):
    """Each sample's share in the quadratic forms of random vectors, by layer and kind, `(samples, n)`."""
    modules = {name: model.get_submodule(name) for name in linears}
    settings = Settings(criteria=("width", "depth"), max_tokens=10**9)
    found = capture(model, modules, batches, loss, settings=settings, ranks=Ranks(), described=describe(model))
    result = {}
    for layer in list(found.layers):
        tokens = layer.tokens()
        segment = tokens.segment(torch.arange(len(tokens)))
        size = segment[0].shape[-1] * len(layer.modules)
        vectors = torch.randn(size, tokens.neurons, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        operator = CurvatureOperator([segment], 1.0, Ranks())
        result[layer.linear, layer.kind] = operator.product_and_forms(vectors, tokens.owner, found.samples.local)[1]
    return result


@pytest.mark.parametrize("name", ["swin", "whisper", "resnet", "convnext", "t5 gated", "gemma3"])
def test_tokens_belong_to_the_samples_that_they_come_from(name):
    """Batches of one sample each cannot be mistaken: windows, patches and positions of two lengths give the same."""
    case = family_case(name)

    def loss(model, batch):
        return nn.functional.cross_entropy(
            model(**{key: value for key, value in batch.items() if key != "y"}).logits.flatten(0, -2),
            batch["y"].flatten(),
        )

    single = [{key: value[i : i + 1] for key, value in case.batch.items()} for i in range(len(case.batch["y"]))]
    whole, apart = (forms(case.model, batches, loss, case.linears()) for batches in ([case.batch], single))
    assert list(whole) == list(apart) and len(whole) > len(case.linears())
    for key, expected in whole.items():
        assert expected.abs().sum(1).gt(0).sum() > 1
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            apart[key], expected, rtol=0, atol=1e-5 * scale, msg=lambda text, k=key: f"{k} {text}"
        )


def test_the_mean_over_tokens_does_not_depend_on_the_batches():
    """A model's own loss is a mean over the tokens of a batch; that of the probe is one over all of its tokens."""
    for name in ("gpt2", "bert", "t5 gated"):
        model = family_case(name).model
        batch = padded(LENGTHS, 18)
        whole = analyze_curvature(model, [batch], ("width", "depth"), solver=EXACT)
        parts = [cut(batch, slice(0, 2), 7), cut(batch, slice(2, 5), 18)]
        assert own_loss(model, parts[0]).item() != pytest.approx(own_loss(model, batch).item(), rel=1e-4)
        assert whole.loss == pytest.approx(own_loss(model, batch).item(), rel=1e-5)
        assert_same(analyze_curvature(model, parts, ("width", "depth"), solver=EXACT), whole, 1e-4)


def test_a_batch_without_labels_that_count_is_refused():
    model = family_case("gpt2").model
    batch = padded(LENGTHS, 18)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    with pytest.raises(ValueError, match="no label that counts"):
        analyze_curvature(model, [padded(LENGTHS, 18), batch])


def test_tied_embeddings_are_no_obstacle():
    case = family_case("gpt2")
    assert case.model.lm_head.weight is case.model.transformer.wte.weight
    report = analyze_curvature(case.model, [padded(LENGTHS, 18)])
    assert len(report) == 2 * 4 and not report.skipped
    with pytest.raises(ValueError, match="tied"):
        analyze_curvature(case.model, [padded(LENGTHS, 18)], linears=["lm_head"])


def test_unknown_names_of_a_description_are_refused():
    case = family_case("bert")
    del case.model.bert.encoder.layer[1].output.dense
    with pytest.raises(ValueError, match=r"has not encoder.layer.1.output.dense, .*families.py"):
        analyze_curvature(case.model, [case.batch])
