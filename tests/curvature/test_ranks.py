"""Several ranks, or several batches, give the result of one process on the union of the samples."""

import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from architecture_cases import family_case, family_loss
from curvature_cases import EXACT, MLP, cross_entropy, transformer_case

from hf_saddle.curvature import SolverOptions, analyze_curvature


SCREENED = SolverOptions(screen_tokens=0.3, screen_floor=16, shortlist=0.3, shortlist_floor=3)
OPTIONS = {
    "exact": {"solver": EXACT},
    "screened": {"solver": SCREENED},
    "whitened": {"solver": SCREENED, "whiten": True},
}
CRITERIA = ("width", "depth", "grad_norm", "gradmax", "paper_score", "random")
FIELDS = ("eigenvalue", "standard_error", "fit_eigenvalue", "residual", "response", "step", "gain", "direction")


def case():
    return transformer_case(samples=20, tokens=6, hidden=12)


def part(rows):
    return {name: value[rows] for name, value in case().batch.items()}


def analyze(batches, **kwargs):
    return analyze_curvature(case().model, batches, CRITERIA, loss=cross_entropy, seed=3, **kwargs)


def assert_same(actual, expected):
    assert [(a.linear, a.criterion) for a in actual] == [(b.linear, b.criterion) for b in expected]
    assert (actual.samples, actual.tokens) == (expected.samples, expected.tokens)
    assert actual.loss == pytest.approx(expected.loss, rel=1e-10)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.significant, b.significant)
        assert torch.equal(a.refined, b.refined)
        for name in FIELDS:
            left, right = getattr(a, name), getattr(b, name)
            if name == "direction":  # eigenvectors have no sign
                left, right = left * left.sum(1, keepdim=True).sign(), right * right.sum(1, keepdim=True).sign()
            scale = float(b.fit_eigenvalue.abs().max()) if name != "direction" else 1
            torch.testing.assert_close(
                left, right, rtol=1e-7, atol=1e-9 * scale, msg=lambda text, a=a: f"{a.linear} {text}"
            )


# A gated model, one with convolutions and batch normalisations, and one whose inputs, behind a layer norm, span fewer
# dimensions than they have.
FAMILIES = ("dinov2 swiglu", "resnet", "convnext")


def analyze_family(name, rows, options, **kwargs):
    case = family_case(name, samples=20)
    batches = [{key: value[part] for key, value in case.batch.items()} for part in rows]
    return analyze_curvature(
        case.model, batches, ("width", "depth", "random"), loss=family_loss, seed=3, **OPTIONS[options], **kwargs
    )


def run_rank(rank, path, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # 7 samples in one batch here, 13 in two batches there.
    rows = [[slice(0, 7)], [slice(7, 11), slice(11, 20)]][rank]
    for name, options in OPTIONS.items():
        report = analyze([part(own) for own in rows], **options, distributed=True, max_tokens=10**6)
        torch.save(report, f"{path}/{name} {rank}.pt")
    for name in FAMILIES:
        report = analyze_family(name, rows, "whitened", distributed=True, max_tokens=10**6)
        torch.save(report, f"{path}/{name} {rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """A folder with what each of two processes, started once for all, has found."""
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(run_rank, args=(str(folder), str(folder / "store")), nprocs=2)
    return folder


@pytest.mark.thinned(2)
@pytest.mark.distributed
@pytest.mark.parametrize("name", OPTIONS)
def test_two_ranks_give_the_result_of_one_process(name, two_ranks):
    expected = analyze([part(slice(0, 20))], **OPTIONS[name])
    for rank in range(2):
        assert_same(torch.load(two_ranks / f"{name} {rank}.pt", weights_only=False), expected)


@pytest.mark.distributed
@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_give_the_result_of_one_process_for_gated_and_convolutional_neurons(name, two_ranks):
    expected = analyze_family(name, [slice(0, 20)], "whitened", max_tokens=10**6)
    for rank in range(2):
        assert_same(torch.load(two_ranks / f"{name} {rank}.pt", weights_only=False), expected)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("options", ["screened", "whitened"])
@pytest.mark.parametrize("name", FAMILIES)
def test_batches_make_no_difference_for_any_kind_of_neuron(name, options):
    parts = [slice(0, 7), slice(7, 11), slice(11, 20)]
    reports = (analyze_family(name, rows, options, max_tokens=10**6) for rows in (parts, [slice(0, 20)]))
    assert_same(*reports)


class FailingBackward(torch.autograd.Function):
    """The identity, whose gradient is an error."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("broken backward")


def failing_batches(how):
    """Two batches of a rank that fails; the other rank has one."""
    batches = [part(slice(10, 15)), part(slice(15, 20))]
    if how == "batches":
        raise RuntimeError("broken batches")
    if how == "nan":
        batches[0]["x"][0] = float("nan")
    if how == "empty":
        batches = []
    yield from batches


def failing_loss(how):
    seen = []

    def loss(model, batch):
        seen.append(batch)
        if (how, len(seen)) in {("first forward", 1), ("last forward", 2)}:
            raise RuntimeError(f"broken {how}")
        value = cross_entropy(model, batch)
        breaks = (how, len(seen)) in {("first backward", 1), ("last backward", 2)}
        return FailingBackward.apply(value) if breaks else value

    return loss


class FunctionalReader(MLP):
    """An MLP whose hidden pre-activations are read outside of any module too."""

    def forward(self, x):
        z = self.fc1(x)
        return self.fc2(self.activation(z)) + z.mean(-1, keepdim=True)


def without_attention(model, batch):
    return torch.nn.functional.cross_entropy(model.head(model.mlp(batch["x"]).mean(dim=1)), batch["y"])


FAILURES = {
    "batches": (RuntimeError, "broken batches"),
    "empty": (ValueError, "at least one batch"),
    "first forward": (RuntimeError, "broken first forward"),
    "last forward": (RuntimeError, "broken last forward"),
    "first backward": (RuntimeError, "broken backward"),
    "last backward": (RuntimeError, "broken backward"),
    "nan": (ValueError, "loss of a probe batch is nan"),
}


def failing_rank(rank, store):
    torch.set_num_threads(1)
    # A rank that waits for the other would end in another error than the expected one.
    patience = datetime.timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=patience)
    for how, (kind, message) in FAILURES.items():
        model = case().model
        if rank == 0:
            failure = pytest.raises(RuntimeError, match=f"failed on rank 1, .*. {kind.__name__}: .*{message}")
            batches, loss = [part(slice(0, 10))], cross_entropy
        else:
            failure = pytest.raises(kind, match=f"^[^0-9]*{message}")
            batches, loss = failing_batches(how), failing_loss(how)
        with failure:
            analyze_curvature(model, batches, loss=loss, solver=EXACT, distributed=True)
    own = [part(slice(10 * rank, 10 * rank + 10))]
    with pytest.raises(ValueError, match="different layers"):
        loss = without_attention if rank else cross_entropy
        analyze_curvature(case().model, own, loss=loss, distributed=True)
    # What forbids to split neurons on one rank forbids it on all.
    model = case().model
    if rank:
        model.mlp.__class__ = FunctionalReader
    only = {"linears": ["mlp.fc1"], "loss": cross_entropy, "distributed": True}
    report = analyze_curvature(model, own, ("width", "depth"), **only)
    assert report.get("mlp.fc1", "width") is None and report.get("mlp.fc1", "depth") is not None
    assert "not a module" in report.skipped["mlp.fc1"]
    # The ranks are still in step.
    assert analyze_curvature(case().model, own, loss=cross_entropy, distributed=True).samples == 20
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_what_fails_on_one_rank_fails_on_all_and_leaves_them_in_step(tmp_path):
    multiprocessing.spawn(failing_rank, args=(str(tmp_path / "store"),), nprocs=2)


@pytest.mark.parametrize("name", OPTIONS)
def test_batches_of_unequal_size_are_weighted_by_their_samples(name):
    batches = [part(slice(0, 3)), part(slice(3, 15)), part(slice(15, 20))]
    assert_same(analyze(batches, **OPTIONS[name], max_tokens=10**6), analyze([part(slice(0, 20))], **OPTIONS[name]))


@pytest.mark.thinned(2)
@pytest.mark.parametrize("sizes", [(20,), (10, 10)], ids=["one batch", "two batches"])
def test_a_cap_on_tokens_leaves_the_estimates_unbiased(sizes):
    batches = [part(slice(sum(sizes[:i]), sum(sizes[: i + 1]))) for i in range(len(sizes))]
    full = analyze_curvature(case().model, [part(slice(0, 20))], loss=cross_entropy, linears=["mlp.fc1"], solver=EXACT)
    reference = full["mlp.fc1", "depth"]
    values = []
    for seed in range(60):
        report = analyze_curvature(
            case().model, batches, loss=cross_entropy, linears=["mlp.fc1"], solver=EXACT, max_tokens=60, seed=seed
        )
        values.append(report["mlp.fc1", "depth"].eigenvalue)
    spread = torch.stack(values)
    # Folds differ by seed, so the mean is compared with the same quantity of full probes of many seeds.
    unsampled = torch.stack(
        [
            analyze_curvature(
                case().model, [part(slice(0, 20))], loss=cross_entropy, linears=["mlp.fc1"], solver=EXACT, seed=seed
            )["mlp.fc1", "depth"].eigenvalue
            for seed in range(60)
        ]
    )
    error = (spread.std(0).square() / 60 + unsampled.std(0).square() / 60).sqrt()
    assert ((spread.mean(0) - unsampled.mean(0)).abs() < 5 * error + 0.1 * reference.fit_eigenvalue.abs()).all()


def test_the_same_seed_gives_the_same_report_and_another_seed_other_folds():
    batch = part(slice(0, 20))
    first, again, other = (
        analyze_curvature(case().model, [batch], loss=cross_entropy, linears=["mlp.fc1"], seed=seed)[
            "mlp.fc1", "depth"
        ]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.eigenvalue, again.eigenvalue)
    assert torch.equal(first.direction, again.direction)
    assert not torch.equal(first.eigenvalue, other.eigenvalue)


def test_distributed_without_a_process_group_is_refused():
    with pytest.raises(ValueError, match="init_process_group"):
        analyze([part(slice(0, 20))], solver=EXACT, distributed=True)
