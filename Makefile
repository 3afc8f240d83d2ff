# Every target makes what it needs: .venv with the pinned requirements, and the built package.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of csrc the folders, too, whose times tell that a file is gone.
SOURCES := $(shell find csrc cmake; find kernels -type f -not -name '*.py' -not -name '*.pyc') \
           CMakeLists.txt setup.py pyproject.toml

$(VENV)/built test bench audit ctest sanitize: export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help pretrain test bench bench-quick papers papers-quick lint format audit ctest sanitize gpu-check clean

help:
	@echo "make pretrain   pretrain a small BERT on real text; options: ARGS=\"--optimizer lamadam\""
	@echo "make test       the tests; options: ARGS=\"-k madam\""
	@echo "make bench      all measurements of this machine, with peers; options: ARGS=--record"
	@echo "make bench-quick  every algorithm on small sets, in a minute or two"
	@echo "make papers     the papers' own experiments: docs/papers.md; options: ARGS=\"--only 1 4\""
	@echo "make papers-quick  smaller ones, in minutes; fails where a claim fails"
	@echo "make lint       ruff, mypy and clang-format, as CI checks them (make format: apply them)"
	@echo "make audit      compile all GPU kernels offline, search their code, run it on the CPU"
	@echo "make ctest      the native code alone, without torch: emulated CUDA against the CPU"
	@echo "make sanitize   the core of the tests with the native code under ASan and UBSan"
	@echo "make gpu-check  on a machine with a GPU: build, bits, sanitizer, speed; results under \$$OUT;"
	@echo "                options: ARGS=\"--only build tests\""

build/peers: $(VENV)/installed bench/requirements.txt
	$(BIN)/pip install --quiet --no-deps --upgrade --target $@ --requirement bench/requirements.txt
	touch $@

$(VENV)/installed: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

# The stamp is of before the build: what is written while it runs is built next time.
$(VENV)/built: $(VENV)/installed $(SOURCES)
	touch $@.new
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	mv $@.new $@

pretrain: $(VENV)/built
	$(BIN)/python examples/pretrain_bert.py $(ARGS)

test: $(VENV)/built
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

# All of it: dtypes, threads, the host, growth. An hour or more on two cores.
BENCH := $(BIN)/python -m bench
SETS := bert-base $(if $(shell command -v nvidia-smi),bert-large gpt2-xl)
bench: export PYTHONPATH := $(CURDIR)/build/peers
bench: $(VENV)/built build/peers
	$(BENCH) self-check
	$(BENCH) --set $(SETS) --peers all --plot --out build/bench/f32.json $(ARGS)
	$(BENCH) --set $(SETS) --dtype f64 bf16 f16 bf16-master bf16-state16 --peers torch \
	  --plot --out build/bench/dtypes.json $(ARGS)
	$(BENCH) --set bert-base --peers none --threads 1 --out build/bench/threads.json $(ARGS)
	$(BENCH) --set tiny --peers torch torch-compile --out build/bench/tiny.json $(ARGS)
	$(BENCH) --set swarm --out build/bench/swarm.json $(ARGS)
	$(BENCH) growth --plot --out build/bench/growth.json $(ARGS)
	$(BENCH) training --out build/bench/training.json $(ARGS)

bench-quick: $(VENV)/built
	$(BENCH) self-check --threads 1
	$(BENCH) --set 4x1000000 --dtype f32 bf16 --rounds 5 --gate 0.8 --plot \
	  --out build/bench-quick.json $(ARGS)
	$(BENCH) --set tiny --algorithms adamw --rounds 5 --gate 0.8 --out build/bench-tiny.json $(ARGS)

papers: $(VENV)/built
	$(BENCH).papers $(ARGS)

papers-quick: $(VENV)/built
	$(BENCH).papers --quick --fresh $(ARGS)

audit: $(VENV)/built
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/audit $(ARGS)

CPP := $(shell find csrc kernels tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build $(VENV) python/fusedstep/*.so

ctest: $(VENV)/installed
	cmake -S . -B build/ctest -G Ninja -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" \
	  -DFUSEDSTEP_CUDA=OFF -DFUSEDSTEP_EMULATE_CUDA=ON
	cmake --build build/ctest
	ctest --test-dir build/ctest --output-on-failure

# Python is not built with ASan, so ASan has to be loaded first; and torch does not free at exit.
# The emulated kernels run in race_test. Left out: what repeats the same kernels for minutes.
CORE := tests/test_bits.py tests/test_layout.py tests/test_plan.py tests/test_state.py \
        tests/test_sums.py tests/test_amp.py \
        tests/test_sizes.py::test_a_chunk_beyond_32_bits_is_found
sanitize: export FUSEDSTEP_SANITIZE := address,undefined
sanitize: export ASAN_OPTIONS := detect_leaks=0
sanitize: $(VENV)/built
	$(BIN)/python -c "from tests import emulation; emulation.build()"
	ctest --test-dir build/sanitized --output-on-failure
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest --numprocesses 2 \
	  -k "not triton and not emulated and not bitwise and not has_its_dtype and not lanes" \
	  $(CORE) $(ARGS)

# Uses the machine's own python, where torch for its GPU is.
gpu-check:
	$(PYTHON) bench/gpu_check.py $(ARGS)
