"""The fits, CP and the tensor ring, against tensorly, and what must hold for any kernel."""

import threading

import numpy as np
import pytest
import tensorly
import torch
from decompositions_cases import DECOMPOSITIONS, FITTED, decomposed, error, gaussian
from tensorly.decomposition import parafac

import tnlib

fitted = pytest.mark.parametrize("name", FITTED)


@fitted
def test_a_fit_says_how_it_ended(name):
    fit = decomposed(name)
    assert fit.relative_error == pytest.approx(error(gaussian(), fit), abs=1e-12)
    assert fit.relative_error == pytest.approx(fit.errors[-1], abs=1e-7)
    assert all(after <= before + 1e-7 for before, after in zip(fit.errors, fit.errors[1:]))
    assert all(isinstance(value, float) for value in (*fit.errors, fit.relative_error, fit.largest_component_norm))
    assert isinstance(fit.converged, bool) and fit.largest_component_norm > 0


@pytest.mark.parametrize("fit", [lambda **options: tnlib.cp(gaussian(), 3, **options),
                                 lambda **options: tnlib.tensor_ring(gaussian(), (2, 2, 3, 2), **options)],
                         ids=["cp", "ring"])
def test_fits_are_seeded(fit):
    one, again, other = fit(seed=1), fit(seed=1), fit(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(one.factors, again.factors)) and one.errors == again.errors
    assert not torch.equal(one.factors[0], other.factors[0])
    errors = [fit(starts=starts, max_iterations=20).relative_error for starts in range(1, 8)]
    assert all(after <= before for before, after in zip(errors, errors[1:]))
    single = [fit(seed=seed, starts=1, max_iterations=20).relative_error for seed in range(5)]
    assert any(fit(seed=seed, starts=5, max_iterations=20).relative_error < single[seed] for seed in range(5))
    short, long = fit(max_iterations=2, tolerance=1e-9), fit(max_iterations=500, tolerance=1e-4)
    assert not short.converged and len(short.errors) == 2
    assert long.converged and len(long.errors) < 500


@pytest.mark.parametrize("make", [lambda k: tnlib.cp(k, 3), lambda k: tnlib.tensor_ring(k, (2, 2, 2, 2))],
                         ids=["cp", "ring"])
@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
def test_fits_leave_backend_and_random_states_alone(make, backend):
    with tensorly.backend_context(backend):
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
        make(gaussian())
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state))
        seen = [tensorly.get_backend()]
        thread = threading.Thread(target=lambda: seen.append(tensorly.get_backend()))
        thread.start(), thread.join()
        assert seen == [backend, backend]


def test_a_fit_that_fails_leaves_the_backend_alone(monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("no fit")

    monkeypatch.setattr("tnlib.tensors.fits.parafac", fail)
    with tensorly.backend_context("numpy"), pytest.raises(RuntimeError, match="no fit"):
        try:
            tnlib.cp(gaussian(), 2)
        finally:
            assert tensorly.get_backend() == "numpy"


def test_cp_is_no_worse_than_tensorlys():
    kernel = gaussian((12, 8, 3, 3))
    theirs = parafac(kernel.numpy(), 8, init="random", random_state=0, n_iter_max=200, tol=1e-6)
    expected = np.linalg.norm(tensorly.cp_to_tensor(theirs) - kernel.numpy()) / kernel.norm().item()
    assert tnlib.cp(kernel, 8).relative_error < 1.01 * expected


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_cp_of_a_matrix_is_its_truncation(rank):
    kernel = gaussian((9, 6, 1, 1))
    expected, found = tnlib.truncate(kernel, "OUT", rank), tnlib.cp(kernel, rank, tolerance=1e-10, max_iterations=2000)
    torch.testing.assert_close(found.to_kernel(), expected, rtol=0, atol=1e-2)
    assert found.relative_error == pytest.approx(tnlib.relative_error(kernel, expected).item(), abs=1e-5)


def test_cp_factors_are_balanced():
    norms = torch.stack([factor.norm(dim=0) for factor in decomposed("cp").factors])
    torch.testing.assert_close(norms, norms[:1].expand(4, -1))
    largest = norms.prod(dim=0).max() / gaussian().norm()
    assert decomposed("cp").largest_component_norm == pytest.approx(largest.item())


def test_components_of_a_ring_are_its_open_trains():
    ring = decomposed("ring")
    first, *inner, last = ring.factors
    trains = [torch.einsum("ib,bhc,cwd,do->oihw", first[a], *inner, last[..., a]) for a in range(2)]
    torch.testing.assert_close(sum(trains), ring.to_kernel())
    largest = max(train.norm() for train in trains) / gaussian().norm()
    assert ring.largest_component_norm == pytest.approx(largest.item())


def test_a_kernel_without_a_nearest_cp_is_told_by_its_components():
    """The tensor aab + aba + baa has rank 3, and kernels of rank 2 come as near as one likes (Phan et al. 2020)."""
    a, b = torch.eye(2, dtype=torch.float64)
    kernel = sum(torch.einsum("o,i,h->oih", *v)[..., None] for v in ((a, a, b), (a, b, a), (b, a, a)))
    short, long = (tnlib.cp(kernel, 2, starts=1, max_iterations=n, tolerance=1e-12) for n in (30, 600))
    assert long.relative_error < 0.5 * short.relative_error < 0.1
    assert long.largest_component_norm > 1.5 * short.largest_component_norm and long.largest_component_norm > 2
    assert decomposed("cp").largest_component_norm < 1.5


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (9, 6, 1, 1), (7, 1, 3, 3)], ids=str)
def test_errors_of_fits_fall_with_the_rank(shape):
    kernel = gaussian(shape)
    most = kernel.numel() // max(shape)
    errors = [tnlib.cp(kernel, rank).relative_error for rank in (1, 2, 4, 8, 16) if rank <= most]
    assert all(after < before for before, after in zip(errors, errors[1:]))
    if shape[2] > 1:
        errors = [tnlib.tensor_ring(kernel, (rank if shape[1] > 1 else 1,) * 4).relative_error for rank in (1, 2, 3)]
        assert all(after <= before for before, after in zip(errors, errors[1:]))


def test_an_open_ring_is_as_near_as_the_tensor_train():
    """Least squares over the same networks as the train's successive SVDs, which are not the nearest."""
    kernel = gaussian((12, 8, 3, 3))
    ring = tnlib.tensor_ring(kernel, (1, 4, 6, 5), max_iterations=300, tolerance=1e-8)
    assert ring.relative_error < error(kernel, tnlib.tensor_train(kernel, (4, 6, 5)))


def test_normal_equations_give_the_same_ring():
    kernel = gaussian((12, 8, 3, 3))
    plain, normal = (tnlib.tensor_ring(kernel, (2, 3, 4, 3), max_iterations=20, normal_equations=how)
                     for how in (False, True))
    assert normal.relative_error == pytest.approx(plain.relative_error, rel=1e-9)
    torch.testing.assert_close(normal.to_kernel(), plain.to_kernel(), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("kernel", [
    torch.ones(4, 4, 3, 3), torch.eye(36)[7].reshape(2, 2, 3, 3), torch.eye(6).reshape(6, 6, 1, 1),
    gaussian((6, 5, 3, 3)) * (torch.arange(6) < 3)[:, None, None, None], 1e-12 * gaussian(), 1e12 * gaussian()],
    ids=["constant", "one-entry", "identity", "dead-filters", "tiny", "huge"])
def test_fits_of_kernels_with_more_rank_than_they_need(kernel):
    found = tnlib.cp(kernel, kernel.numel() // max(kernel.shape))
    assert found.relative_error < 1e-6 and found.largest_component_norm < 1e3
    ranks = (2, 2, 2, 2) if kernel.shape[2] > 1 else (2, 3, 3, 3)
    ring = tnlib.tensor_ring(kernel, ranks)
    assert all(torch.isfinite(core).all() for core in ring.factors) and ring.relative_error < 1


@fitted
def test_no_gradient_goes_through_a_fit(name):
    factors = DECOMPOSITIONS[name][0](gaussian().requires_grad_())
    assert not any(factor.requires_grad for factor in factors.factors)


def test_of_starts_at_singular_vectors_alone_nothing_is_drawn():
    """Up to the shortest mode's length they need no further columns, so no seed."""
    one, other = (tnlib.cp(gaussian(), 2, seed=seed, starts=0, svd_starts=1, max_iterations=5) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.factors, other.factors))
    drawn, both = (tnlib.cp(gaussian(), 2, starts=1, svd_starts=k, max_iterations=5) for k in (0, 1))
    assert both.relative_error == min(drawn.relative_error, one.relative_error)
