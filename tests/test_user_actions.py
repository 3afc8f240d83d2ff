"""Whatever a user does to an optimizer, in whatever order, backends keep the same bits.

Random sequences of actions are played on the CPU, and on the reference backend, which loads its own
state before every step, so that nothing else goes on; a failure is told as the shortest sequence
that shows it.
"""

import copy
import pickle

import torch
from fusedstep import testing
from fusedstep.backends import BACKENDS
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.training import CLASSES, assert_same, saved_and_loaded, stored

CASES = st.sampled_from(CLASSES).flatmap(
    lambda cls: st.sampled_from([case for case in testing.CASES if case.cls is cls])
)
SHAPES = st.sampled_from([(), (0,), (3,), (4, 5), (1030,)])
CPU_BACKENDS = st.sampled_from([name for name in BACKENDS if name.startswith("cpu")])
SEEDS = st.integers(0, 99)
OPTIONS = {
    "master_weights": st.booleans(),
    "state_dtype": st.sampled_from([None, torch.bfloat16]),
    "skip_nonfinite": st.booleans(),
}
HYPERS = {
    "lr": st.sampled_from([0.0, 1e-3, 0.1, torch.tensor(0.02)]),
    "weight_decay": st.sampled_from([0.0, 0.3]),
    "eps": st.sampled_from([1e-3, 1e-8]),
    "max_grad_norm": st.sampled_from([None, 0.5, float("inf")]),
    "maximize": st.booleans(),
    "betas": st.sampled_from([(0.9, 0.99), (0.0, 0.5)]),
    "beta1": st.sampled_from([0.0, 0.8]),
    "amsgrad": st.booleans(),
}


class World:
    """The parameters and the optimizer of one backend."""

    def __init__(self, case, mode, backend):
        self.case, self.mode, self.params = case, mode, []
        groups = [{"params": [self.parameter((4, 5), 0), self.parameter((7,), 1)]}]
        options = {**dict(case.options), **mode.options}
        self.optimizer = case.cls(groups, backend=backend, **options)

    def parameter(self, shape, seed):
        """The last dimension has the longest stride, unlike in a gradient."""
        values = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(seed))
        values = values.to(self.mode.param).permute(tuple(range(len(shape)))[::-1])
        self.params.append(torch.nn.Parameter(values))
        return self.params[-1]

    def give_gradient(self, i, seed, special):
        p = self.params[i]
        dtype = self.mode.grad if p.dtype is self.mode.param else p.dtype
        if p.dtype is not dtype:
            p.grad_dtype = dtype
        generator = torch.Generator().manual_seed(seed)
        p.grad = testing.gradient(p.shape, generator, special).to(dtype)

    def step(self):
        if self.optimizer.backend == "reference":
            self.optimizer.load_state_dict(self.optimizer.state_dict())
        self.optimizer.step()

    def save_and_load(self, backend, options):
        saved = saved_and_loaded(self.optimizer.state_dict())
        groups = [{"params": group["params"]} for group in self.optimizer.param_groups]
        options = {**dict(self.case.options), **options}  # what a group added later begins with
        self.optimizer = self.case.cls(groups, backend=backend, **options)
        self.optimizer.load_state_dict(saved)


class Actions(RuleBasedStateMachine):
    @initialize(case=CASES, mode=st.sampled_from(testing.MODES))
    def build(self, case, mode):
        note(f"{case.id}, {mode.id}")
        self.worlds = [World(case, mode, backend) for backend in ("cpu", "reference")]
        self.options = {**dict.fromkeys(OPTIONS, False), "state_dtype": None, **mode.options}

    @rule(seed=SEEDS, without=st.integers(0, 5), special=st.sampled_from([False] * 7 + [True]))
    def give_gradients(self, seed, without, special):
        for world in self.worlds:
            for i, p in enumerate(world.params):
                p.grad = None
                if i != without:
                    world.give_gradient(i, seed + i, special)

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none):
        for world in self.worlds:
            world.optimizer.zero_grad(set_to_none)

    @rule(times=st.integers(1, 3))
    def step(self, times):
        for world in self.worlds:
            for _ in range(times):
                world.step()

    @rule(scale=st.sampled_from([1.0, 8.0, 3.0]), found_inf=st.sampled_from([0.0, 1.0, 2.0]))
    def scaled_step(self, scale, found_inf):
        for world in self.worlds:
            world.optimizer.grad_scale = torch.tensor(scale)
            world.optimizer.found_inf = torch.tensor(found_inf)
            world.step()
            del world.optimizer.grad_scale, world.optimizer.found_inf

    @rule(shape=SHAPES, seed=SEEDS)
    def add_a_group(self, shape, seed):
        for world in self.worlds:
            if len(world.optimizer.param_groups) < 4:
                p = world.parameter(shape, seed)
                world.optimizer.add_param_group({"params": [p]})

    @rule(data=st.data(), name=st.sampled_from(sorted(HYPERS)), last=st.booleans())
    def change_a_hyper_parameter(self, data, name, last):
        if name in self.worlds[0].optimizer.defaults:
            value = data.draw(HYPERS[name])
            for world in self.worlds:
                world.optimizer.param_groups[-last][name] = copy.copy(value)

    @rule(i=st.integers(0, 4), seed=SEEDS)
    def edit_a_parameter(self, i, seed):
        for world in self.worlds:
            p = world.params[i % len(world.params)]
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                p.copy_(torch.randn(p.shape, generator=generator))
            world.optimizer.resync_master()

    @rule(i=st.integers(0, 4), factor=st.sampled_from([0.25, 3.0]))
    def edit_a_state(self, i, factor):
        for world in self.worlds:
            state = world.optimizer.state.get(world.params[i % len(world.params)], {})
            for name in {"exp_avg", "exp_avg_sq", "grad_sum"} & state.keys():
                state[name].mul_(factor)

    @rule(i=st.integers(0, 4), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
    def change_a_dtype(self, i, dtype):
        for world in self.worlds:
            p = world.params[i % len(world.params)]
            p.grad, p.grad_dtype = None, None
            p.data = p.data.to(dtype)

    @rule(i=st.integers(0, 4))
    def move_a_parameter(self, i):
        for world in self.worlds:
            p = world.params[i % len(world.params)]
            p.data = p.data.clone()

    @rule(i=st.integers(0, 4))
    def forget_a_state(self, i):
        for world in self.worlds:
            world.optimizer.state.pop(world.params[i % len(world.params)], None)

    @rule(backend=CPU_BACKENDS)
    def save_and_load(self, backend):
        for world, name in zip(self.worlds, (backend, "reference"), strict=True):
            world.save_and_load(name, self.options)

    @rule(data=st.data(), name=st.sampled_from(sorted(OPTIONS)))
    def load_with_other_options(self, data, name):
        self.options[name] = data.draw(OPTIONS[name])
        self.save_and_load("cpu")

    @rule(data=st.data(), name=st.sampled_from(sorted(OPTIONS)))
    def choose_other_options(self, data, name):
        self.options[name] = data.draw(OPTIONS[name])
        for world in self.worlds:
            setattr(world.optimizer, name, self.options[name])

    @rule(clone=st.sampled_from([copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]))
    def clone(self, clone):
        for world in self.worlds:
            world.params, world.optimizer = clone((world.params, world.optimizer))

    @invariant()
    def bits_are_equal(self):
        got, want = (stored(world.optimizer, world.params) for world in self.worlds)
        assert_same(got, want)


Actions.TestCase.settings = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=300,
    stateful_step_count=25,
    suppress_health_check=list(HealthCheck),
)
test_random_sequences_of_actions = Actions.TestCase
