"""Batched Lanczos against dense eigenvalues, its residual bounds, and degenerate matrices."""

import pytest
import torch

from hf_saddle.curvature.solving.lanczos import lanczos


def random_matrices(count=5, size=30, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    return ((matrix + matrix.mT) / 2).to(dtype)


def product(matrices):
    return lambda vectors: torch.einsum("nde,en->dn", matrices, vectors)


def start(matrices):
    return torch.randn(matrices.shape[1], len(matrices), generator=torch.Generator().manual_seed(1)).to(matrices.dtype)


@pytest.mark.parametrize("upper", [False, True])
def test_both_ends_equal_dense_eigenvalues(upper):
    matrices = random_matrices()
    expected = torch.linalg.eigvalsh(matrices)[:, -1 if upper else 0]
    ritz = lanczos(product(matrices), start(matrices), 30).ritz(torch.full((5,), upper))
    torch.testing.assert_close(ritz.value, expected, rtol=1e-8, atol=0)
    torch.testing.assert_close(product(matrices)(ritz.vector), ritz.value * ritz.vector, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_residual_is_that_of_the_returned_pair_and_bounds_the_error(steps):
    matrices = random_matrices(seed=steps)
    ritz = lanczos(product(matrices), start(matrices), steps).ritz(torch.zeros(5, dtype=torch.bool))
    image = product(matrices)(ritz.vector)
    torch.testing.assert_close(ritz.product, image)
    torch.testing.assert_close(ritz.residual, (image - ritz.value * ritz.vector).norm(dim=0))
    distance = (torch.linalg.eigvalsh(matrices) - ritz.value[:, None]).abs().amin(1)
    assert (distance <= ritz.residual + 1e-12).all()


def test_it_stops_when_the_residuals_are_below_the_tolerance():
    matrices = torch.diag_embed(torch.tensor([[-100.0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] * 3, dtype=torch.float64))
    smallest = torch.zeros(3, dtype=torch.bool)
    calls = []

    def counted(vectors):
        calls.append(1)
        return product(matrices)(vectors)

    krylov = lanczos(counted, start(matrices), 10, tolerance=1e-2, largest=smallest)
    assert len(calls) == 4
    assert (krylov.residuals(smallest) <= 1).all()


def test_a_known_first_product_is_not_computed_again():
    matrices = random_matrices()
    calls = []

    def counted(vectors):
        calls.append(1)
        return product(matrices)(vectors)

    low, vectors = torch.zeros(5, dtype=torch.bool), start(matrices)
    expected = lanczos(product(matrices), vectors, 4).ritz(low)
    ritz = lanczos(counted, vectors, 4, product=product(matrices)(vectors)).ritz(low)
    assert len(calls) == 3
    torch.testing.assert_close(ritz.value, expected.value)
    torch.testing.assert_close(ritz.residual, expected.residual)


def test_products_have_what_ends_a_recurrence():
    """Below the square root of the precision it is not followed, but it is there."""
    matrix = torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    matrix[0, 4] = matrix[4, 0] = 1e-9
    start = torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64)
    matrices, starts = torch.stack([matrix, torch.diag(matrix.diagonal())]), torch.stack([start, start], 1)
    ritz = lanczos(product(matrices), starts, 6).ritz(torch.zeros(2, dtype=torch.bool))
    assert ritz.product[4, 0].abs() > 5e-10
    torch.testing.assert_close(ritz.product, product(matrices)(ritz.vector), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_invariant_subspaces_yield_genuine_pairs_without_nan(dtype):
    """A zero matrix, a multiple of the identity, a start vector that is an eigenvector, a matrix of rank one."""
    size = 6
    rank_one = torch.zeros(size, size)
    rank_one[0, 0] = 3
    matrices = torch.stack([torch.zeros(size, size), 2 * torch.eye(size), torch.diag(torch.arange(1.0, 7)), rank_one])
    matrices = matrices.to(dtype)
    vectors = start(matrices)
    vectors[:, 2] = torch.eye(size)[4]
    krylov = lanczos(product(matrices), vectors, size)
    low, high = (krylov.ritz(torch.full((4,), upper)) for upper in (False, True))
    expected = torch.tensor([[0, 2, 5, 0], [0, 2, 5, 3]], dtype=dtype)
    torch.testing.assert_close(torch.stack([low.value, high.value]), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(low.vector.norm(dim=0), torch.ones(4, dtype=dtype))


def test_rounding_does_not_find_what_the_inputs_do_not_span():
    """Positive matrices of 6 of 7 dimensions: a null vector, grown from rounding, is hardly ever their smallest."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64))[0][:, :6]
    rotations = basis @ torch.linalg.qr(torch.randn(2000, 6, 6, generator=generator, dtype=torch.float64))[0]
    values = 0.05 + torch.rand(2000, 6, generator=generator, dtype=torch.float64)
    matrices = (rotations * values[:, None]) @ rotations.mT
    vectors = basis @ torch.randn(6, 2000, generator=generator, dtype=torch.float64)
    found = lanczos(product(matrices), vectors, 8).ritz(torch.zeros(2000, dtype=torch.bool)).value
    null = found < 0.02
    assert null.double().mean() < 0.002
    torch.testing.assert_close(found[~null], values.amin(dim=1)[~null], rtol=0, atol=1e-10)
