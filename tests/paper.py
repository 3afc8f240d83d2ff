"""What the tests against the papers share: gradients, a schedule, one run, one comparison.

The transcriptions in the ``test_paper`` files keep each paper's own quantities and use none of the
library's helpers, so that the two can only agree by computing the same thing.
"""

import torch

STEPS = 40
SIZE = 31
FORMS = ("paper", "released")
WHOLE = ((SIZE,),)  # one group with one parameter
PIECES = ((7, 1), (13, 10))  # two groups with two parameters each
# Of these, the second parameter joins at step 8, and the third pauses.
ABSENT = {(t, 1) for t in range(1, 8)} | {(t, 2) for t in range(15, 20)}


def schedule(t: int, lr: float) -> float:
    """Warm-up over 10 steps, then decay to 0 at the last step."""
    return lr * min(t / 10, (STEPS - t) / (STEPS - 10))


def gradients() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    scale = torch.logspace(-3, 2, SIZE, dtype=torch.float64)
    draw = lambda: torch.randn(SIZE, generator=generator, dtype=torch.float64)  # noqa: E731
    return [scale * (draw() + 0.3) for _ in range(STEPS)]


def quiet_gradients() -> list[torch.Tensor]:
    """Gradients with zeros: in some coordinates always, in others at first or from some step on."""
    place = torch.arange(SIZE)
    result = gradients()
    for t, g in enumerate(result, 1):
        g[place % 7 == 3] = 0.0
        g[(place % 5 == 0) & (t <= 12)] = 0.0
        g[(place % 5 == 1) & (t >= 20)] = 0.0
    return result


def start() -> torch.Tensor:
    return torch.linspace(-1, 1, SIZE, dtype=torch.float64)


def pieces(vector: torch.Tensor, cut=PIECES) -> list[torch.Tensor]:
    """``vector`` as the parameters of all groups, in order."""
    return [part.clone() for part in vector.split([length for group in cut for length in group])]


def play(
    cls, lr, changing, backend="reference", *, cut=WHOLE, grads=None, absent=(), **options
) -> list[torch.Tensor]:
    """Parameters after each step, all in one vector.

    ``changing`` is True for the schedule, or a function like it. ``backend`` is None for classes of
    other packages. ``cut`` gives the lengths of each group's parameters, ``absent`` the pairs
    (step, parameter) without a gradient.
    """
    params = [torch.nn.Parameter(part) for part in pieces(start(), cut)]
    rest = iter(params)
    groups = [{"params": [next(rest) for _ in group]} for group in cut]
    optimizer = cls(groups, lr=lr, **options, **({} if backend is None else {"backend": backend}))
    rate = changing if callable(changing) else schedule
    trace = []
    for t, gradient in enumerate(gradients() if grads is None else grads, 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(t, lr) if changing else lr
        for i, (p, g) in enumerate(zip(params, pieces(gradient, cut))):
            p.grad = None if (t, i) in absent else g
        optimizer.step()
        trace.append(torch.cat([p.detach() for p in params]))
    return trace


def assert_close(got, want, lr, tolerance=1e-12):
    """Every step's parameters agree to ``tolerance`` of a step of size lr."""
    moved = float((want[-1] - start()).abs().max())
    assert moved > lr / 10, "the transcription does not move: nothing was compared"
    allowed = tolerance * max(lr, 1.0)
    for t, (a, b) in enumerate(zip(got, want, strict=True), 1):
        apart = float((a - b).abs().max())
        assert apart <= allowed, f"step {t}: {apart:.3g} apart, {allowed:.3g} is allowed"
