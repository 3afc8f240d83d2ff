"""MADGRAD against the paper's equations and the authors' package."""

import fusedstep
import pytest
import torch

from tests.conftest import TESTED_BACKENDS, device_of
from tests.paper import (
    ABSENT,
    FORMS,
    PIECES,
    WHOLE,
    assert_close,
    gradients,
    pieces,
    play,
    quiet_gradients,
    schedule,
    start,
)
from tests.training import model, name_of

LR = 0.01


def madgrad(
    changing,
    form,
    momentum=0.9,
    weight_decay=0.0,
    eps=1e-6,
    decoupled_weight_decay=False,
    cut=WHOLE,
    grads=None,
    absent=(),
):
    """MADGRAD, Algorithm 1, from the first point x0 also where momentum is 0."""
    c, k, trace = 1 - momentum, 0, []
    x, x0, s, nu = pieces(start(), cut), {}, {}, {}
    for t, gradient in enumerate(gradients() if grads is None else grads, 1):
        rate = schedule(t, LR) if changing else LR
        if form == "released" and rate != 0:
            rate = rate + eps
        lam = rate * (k + 1) ** 0.5
        reached = {i: g for i, g in enumerate(pieces(gradient, cut)) if (t, i) not in absent}
        for i, g in reached.items():
            old = x[i]
            if i not in x0:
                x0[i], s[i], nu[i] = old, torch.zeros_like(old), torch.zeros_like(old)
            if not decoupled_weight_decay:
                g = g + weight_decay * old
            s[i] = s[i] + lam * g
            nu[i] = nu[i] + lam * g * g
            root = nu[i] ** (1 / 3) + eps
            z = x0[i] - torch.where(root == 0, 0.0, s[i] / root)
            x[i] = (1 - c) * old + c * z
            if decoupled_weight_decay:
                x[i] = x[i] - rate * weight_decay * old
                if momentum == 0:  # nothing else remembers the decay: it moves the first point
                    x0[i] = x0[i] - rate * weight_decay * old
        k += bool(reached)
        trace.append(torch.cat(x))
    return trace


ABSENT_AND_NONE = ABSENT | {(t, i) for t in (5, 6) for i in range(4)}

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled_weight_decay": True},
    {"eps": 0.0},
    {"eps": 1e-3},
    {"cut": PIECES, "absent": ABSENT_AND_NONE},
]


@pytest.mark.parametrize("quiet", [False, True], ids=["all", "quiet"])
@pytest.mark.parametrize("options", OPTIONS, ids=name_of)
@pytest.mark.parametrize("momentum", [0.9, 0.5, 0.0])
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
@pytest.mark.parametrize("form", FORMS)
def test_madgrad(form, changing, momentum, options, quiet):
    options = {"momentum": momentum, "grads": quiet_gradients() if quiet else None, **options}
    got = play(fusedstep.MADGRAD, LR, changing, form=form, **options)
    assert_close(got, madgrad(changing, form, **options), LR)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"eps": 0.0},
        {"cut": PIECES},
    ],
    ids=name_of,
)
@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("changing", [False, True], ids=["constant", "schedule"])
def test_madgrads_released_form_is_the_authors_package(changing, momentum, options):
    """With eps = 0 and no momentum the package divides 0 by 0 in its first step."""
    other = pytest.importorskip("madgrad").MADGRAD
    if momentum == 0.0 and options.get("eps") == 0.0:
        options = {"eps": 1e-12}
    options = {"momentum": momentum, **options}
    names = {"decoupled_weight_decay": "decouple_decay"}
    theirs = {names.get(name, name): value for name, value in options.items()}
    want = play(other, LR, changing, backend=None, **theirs)
    assert_close(play(fusedstep.MADGRAD, LR, changing, form="released", **options), want, LR, 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_without_momentum_a_coordinate_without_gradient_keeps_its_bits(form):
    p = torch.nn.Parameter(start())
    optimizer = fusedstep.MADGRAD([p], lr=1.0, momentum=0.0, form=form, backend="reference")
    for g in gradients()[:5]:
        p.grad = g
        optimizer.step()
    with torch.no_grad():
        p.mul_(1e-3)  # an edit: x0 = p + q has no room for the last bits of p
    before = p.detach().clone()
    p.grad = torch.where(torch.arange(len(p)) < 25, 0.0, gradients()[5])
    optimizer.step()
    assert torch.equal(p.detach() == before, torch.arange(len(p)) < 25)


def row_gradients(coalesced, dtype, rows=9, width=4, steps=12):
    """Sparse gradients of an embedding: a few of the rows, some twice unless coalesced."""
    generator = torch.Generator().manual_seed(11)
    for _ in range(steps):
        touched = torch.randint(0, rows - 2, (5,), generator=generator)
        values = torch.randn(5, width, generator=generator, dtype=dtype)
        g = torch.sparse_coo_tensor(touched[None], values, (rows, width), check_invariants=True)
        yield g.coalesce() if coalesced else g


@pytest.mark.parametrize("coalesced", [True, False], ids=["coalesced", "uncoalesced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_sparse_gradients_update_touched_rows_like_dense_ones_and_no_others(
    form, backend, dtype, coalesced
):
    table = torch.linspace(-1, 1, 36, dtype=dtype).reshape(9, 4)
    sparse, dense = torch.nn.Parameter(table.clone()), torch.nn.Parameter(table.clone())
    options = {"lr": LR, "momentum": 0.0, "form": form, "backend": backend}
    of_sparse, of_dense = (fusedstep.MADGRAD([p], **options) for p in (sparse, dense))
    for g in row_gradients(coalesced, dtype):
        before = sparse.detach().clone()
        sparse.grad, dense.grad = g, g.coalesce().to_dense()
        of_sparse.step()
        of_dense.step()
        others = torch.ones(9, dtype=torch.bool)
        others[g.coalesce().indices()[0]] = False
        assert torch.equal(sparse.detach()[others], before[others])
        assert not torch.equal(sparse.detach()[~others], before[~others])
        assert torch.equal(sparse, dense)
    for name in ("grad_sum_sq", "grad_sum"):
        assert torch.equal(of_sparse.state[sparse][name], of_dense.state[dense][name])
    assert torch.equal(sparse.detach()[-2:], table[-2:])  # never touched


def test_sparse_and_dense_parameters_of_one_optimizer_share_the_counter():
    runs = []
    for form_of in (lambda g: g, lambda g: g.coalesce().to_dense()):
        table = torch.nn.Parameter(torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(9, 4))
        vector = torch.nn.Parameter(start())
        optimizer = fusedstep.MADGRAD([table, vector], momentum=0.0, backend="reference")
        for t, (rows, g) in enumerate(zip(row_gradients(False, torch.float64), gradients())):
            table.grad = None if t % 4 == 3 else form_of(rows)
            vector.grad = None if t % 3 == 2 else g  # in step 11 no one has a gradient
            optimizer.step()
        runs.append((table.detach(), vector.detach()))
    assert all(map(torch.equal, *runs))
    assert not torch.equal(runs[0][1], start())


def test_a_sparse_embedding_trains():
    embedding = torch.nn.Embedding(9, 4, sparse=True, dtype=torch.float64)
    before = embedding.weight.detach().clone()
    optimizer = fusedstep.MADGRAD(embedding.parameters(), lr=0.1, momentum=0.0)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (embedding(torch.tensor([1, 3, 3, 7])) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    still = [0, 2, 4, 5, 6, 8]
    assert torch.equal(embedding.weight.detach()[still], before[still])


@pytest.mark.parametrize("option", [{}, {"momentum": 0.0, "weight_decay": 0.1}], ids=name_of)
def test_sparse_gradients_with_momentum_or_decay_are_refused_before_anything_is_written(option):
    p = torch.nn.Parameter(start()[:20].reshape(5, 4))
    p.grad = torch.sparse_coo_tensor(
        [[1]], torch.ones(1, 4).double(), (5, 4), check_invariants=True
    )
    optimizer = fusedstep.MADGRAD([p], backend="reference", **option)
    with pytest.raises(ValueError) as error:
        optimizer.step()
    assert "MADGRAD" in str(error.value) and "momentum" in str(error.value)
    assert torch.equal(p.detach().flatten(), start()[:20])


def test_values_of_a_sparse_gradient_may_have_any_strides():
    found = []
    for values in (torch.arange(6.0).view(3, 2).t(), torch.arange(6.0).view(3, 2).t().contiguous()):
        p = torch.nn.Parameter(torch.ones(4, 3))
        where = torch.tensor([[0, 2]])
        p.grad = torch.sparse_coo_tensor(
            where, values, (4, 3), is_coalesced=True, check_invariants=True
        )
        fusedstep.MADGRAD([p], momentum=0.0).step()
        found.append(p.detach())
    assert torch.equal(*found)


def test_a_parameter_with_sparse_gradients_may_have_any_strides():
    found, values = [], torch.randn(3, 4, 5)
    for p in (values.permute(2, 1, 0).contiguous().permute(2, 1, 0), values.clone()):
        p = torch.nn.Parameter(p)
        index = torch.tensor([[2, 0]])
        p.grad = torch.sparse_coo_tensor(index, values[:2] - 1, (3, 4, 5), check_invariants=True)
        fusedstep.MADGRAD([p], momentum=0.0).step()
        found.append(p.detach())
    assert torch.equal(*found)


def test_a_sparse_gradient_may_have_several_sparse_dimensions():
    dense, found = torch.zeros(3, 4, 2), []
    dense[[0, 2], [3, 1]] = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    for g in (dense, dense.to_sparse(2)):
        (p,) = model((3, 4, 2))
        p.grad = g
        fusedstep.MADGRAD([p], momentum=0.0).step()
        found.append(p.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", ["reference", *TESTED_BACKENDS])
def test_a_first_step_at_rate_zero_keeps_the_parameter(backend):
    """torch takes one to make states. 0.9 p + 0.1 p is p but for the rounding."""
    (p,) = model((3000,), device=device_of(backend))
    with torch.no_grad():
        p[:3] = torch.tensor([torch.inf, -torch.inf, -0.0])
    before = p.detach().clone()
    p.grad = torch.ones_like(p)
    optimizer = fusedstep.MADGRAD([p], lr=0.0, backend=backend)
    optimizer.step()
    assert torch.equal(p, before) and torch.equal(optimizer.state[p]["x0"], before)
    optimizer.step()
    assert not torch.equal(p, before), "only the first"


def test_sparse_gradients_are_not_clipped():
    (p,) = model((4, 2))
    optimizer = fusedstep.MADGRAD([p], momentum=0.0, max_grad_norm=1.0)
    p.grad = torch.ones(4, 2).to_sparse(1)
    with pytest.raises(ValueError, match="no norm for max_grad_norm"):
        optimizer.step()
    assert not optimizer.state
