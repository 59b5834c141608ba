# Two commands need nothing but Python 3.11 or later and make:
#   make lens    the main job: judge every structure and its transform on real gradients
#   make test    the tests, but the long ones
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PAGES := $(patsubst notebooks/%.ipynb,docs/notebooks/%.md,$(wildcard notebooks/*.ipynb))
SOURCES := $(wildcard fimlens/*.py fimlens/*/*.py derivations/*.py)
OLDEST := "jax==0.8.0" "jaxlib==0.8.0" "optax==0.2.6"
# The newest Python here, from PATH or from pyenv. One without ensurepip cannot make a virtual environment.
NEWEST ?= $(shell for v in 14 13 12; do for p in python3.$$v "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.$$v.*/bin/python3; do \
  "$$p" -c 'import ensurepip' 2>/dev/null && { echo "$$p"; exit; }; done; done)
# Most of a test is compilation: machine code is not optimised, and no program is compiled twice.
COMPILE_LESS := XLA_FLAGS=--xla_backend_optimization_level=0 JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/jax-cache \
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

.PHONY: lens prove slips test training notebooks docs lab slow oldest newest newest-tests lint benchmark clean

lens: $(VENV)/installed
	$(RUN)/fimlens lens

prove: $(VENV)/installed slips  # every closed form, on the functions that run
	$(RUN)/fimlens prove

slips: $(VENV)/installed  # every proof under a slip in those functions, which must break it
	$(RUN)/python -m pytest -m proof

test: $(VENV)/installed  # most of it is compilation: machine code is not optimised here, in the other targets it is
	XLA_FLAGS=--xla_backend_optimization_level=0 $(RUN)/python -m pytest

training: $(VENV)/installed  # whole trainings: killed, resumed, spread over devices
	$(RUN)/python -m pytest -m "training and not slow"

notebooks: $(VENV)/with-site  # every notebook from start to end, at a reduced size, as pages of the site
	rm -rf docs/notebooks
	$(MAKE) --jobs 2 $(PAGES)

docs/notebooks/%.md: notebooks/%.ipynb $(SOURCES) | $(VENV)/with-site
	FIMLENS_QUICK=1 $(RUN)/jupyter nbconvert --log-level ERROR --execute --ExecutePreprocessor.timeout=600 \
	  --to markdown --MarkdownExporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor --output-dir $(@D) $<

docs: $(VENV)/with-site $(PAGES)  # the site, in build/site, with the notebooks; a warning is an error
	$(RUN)/mkdocs build --strict

lab: $(VENV)/with-site  # the notebooks, opened in Jupyter
	$(RUN)/jupyter lab notebooks

slow: $(VENV)/installed  # what takes too long for every commit
	$(RUN)/python -m pytest -m slow

oldest: $(VENV)-oldest/installed  # the tests that meet JAX and Optax, on the oldest that we support
	$(COMPILE_LESS) $(VENV)-oldest/bin/python -m pytest tests/test_transform.py tests/test_fisher.py tests/test_errors.py tests/test_decompositions.py tests/test_fidelity.py

newest:  # all tests, and every proof at its first size, on the newest Python that is here, with the newest JAX
	@python="$(NEWEST)"; if [ -n "$$python" ]; then $(MAKE) --no-print-directory newest-tests NEWEST="$$python"; \
	  else echo "newest: skipped, because no Python 3.12 or later was found. To name one: make newest NEWEST=/path/to/python3"; fi

newest-tests: $(VENV)-newest/installed
	$(COMPILE_LESS) $(VENV)-newest/bin/python -m pytest
	$(COMPILE_LESS) $(VENV)-newest/bin/python -m pytest -m proof -k test_it_is_proved

lint: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

benchmark: $(VENV)/installed
	$(RUN)/python benchmarks/scaling.py
	$(RUN)/python benchmarks/step_cost.py

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fimlens needs Python 3.11 or later; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/with-site: $(VENV)/installed
	$(RUN)/python -m pip install --quiet --editable '.[dev,notebooks,docs]'
	@touch $@

$(VENV)-oldest/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --editable '.[dev]' $(OLDEST)
	@touch $@

$(VENV)-newest/installed: pyproject.toml
	$(NEWEST) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest docs/notebooks lens-out build *.egg-info
