# make quickstart   set up, then SFT, reward model, DPO and PPO on toy models, on this machine
# make first-run    set up and train one toy vision-language model: two minutes
# make test         set up and run all checks, in less than ten minutes on two cores
# make test-all     the same, with the longer forms of tests (pytest's marker `nightly`)
# make test-oldest  the command line, three steps of two methods and the tests of what depends on versions, with the oldest
#                   versions that setup.cfg admits
PYTHON ?= python3
# The oldest Python of the launcher alone, for a login node
LAUNCHER_PYTHON ?= python3.10
VENV ?= .venv
PIP = $(VENV)/bin/pip --disable-pip-version-check --quiet

# Two tests at a time, and beside them those of Slurm: these share one cluster, and wait for it most of the time.
PYTEST = $(VENV)/bin/pytest -n 3 --dist loadscope --durations=15

# What depends on the versions of torch and DeepSpeed: kernels, ZeRO stages, checkpoints for another number of ranks.
VERSIONED = tests/jobs/model/test_one_call.py tests/jobs/model/test_trees.py tests/jobs/engine/test_stages.py \
  tests/jobs/checkpoint/test_world_size.py tests/jobs/rank/test_gpu.py

.PHONY: quickstart first-run test test-all test-oldest checks tests all-tests slurm browser clean

quickstart: $(VENV)/.train
	$(VENV)/bin/mmlaunch submit recipes/quickstart_rlhf.yaml --cluster local --follow

first-run: $(VENV)/.train
	$(VENV)/bin/mmlaunch submit recipes/quickstart.yaml --cluster local --follow

# The checks run beside the tests: mypy needs one core for half a minute.
test: $(VENV)/.test slurm browser
	$(MAKE) --no-print-directory -j 2 checks tests

test-all: $(VENV)/.test $(VENV)/liger slurm browser
	$(MAKE) --no-print-directory -j 2 checks all-tests

tests:
	$(PYTEST)

all-tests:
	NIGHTLY=1 $(PYTEST) -m ""

test-oldest:
	$(LAUNCHER_PYTHON) -m venv --clear $(VENV)-oldest-launcher
	$(VENV)-oldest-launcher/bin/pip --disable-pip-version-check --quiet install -c .ci/oldest-launcher.txt .
	.ci/smoke $(VENV)-oldest-launcher
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/pip --disable-pip-version-check --quiet install -c .ci/oldest.txt torch
	$(VENV)-oldest/bin/pip --disable-pip-version-check --quiet install -c .ci/oldest.txt '.[train]'
	.ci/smoke $(VENV)-oldest train
	$(VENV)-oldest/bin/pip --disable-pip-version-check --quiet install -c .ci/constraints.txt pytest pytest-timeout hypothesis
	$(VENV)-oldest/bin/python -m pytest -q -W default $(VERSIONED)

checks: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# torch goes first: installed around it, nothing pulls a second copy for another device.
$(VENV)/.train: setup.cfg pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PIP) install -c .ci/constraints.txt torch
	$(PIP) install -c .ci/constraints.txt -e '.[train]'
	$(VENV)/bin/python -m compileall -q launcher jobs
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(PIP) install -c .ci/constraints.txt -e '.[train,test]'
	touch $@

# Liger's kernels, which Triton interprets on a CPU; outside of the environment, whose torch would find Triton there.
$(VENV)/liger: $(VENV)/.test
	$(PIP) install --no-deps --upgrade --target $@ liger-kernel==0.8.5 triton==3.9.0
	touch $@

# The tests run a real Slurm, and a real sshd, where they can: installed by apt, when this user may.
slurm:
	@command -v slurmctld >/dev/null || test -x /usr/sbin/slurmctld || { \
	  command -v apt-get >/dev/null && test "$$(id -u)" = 0 && echo "installing Slurm and sshd for the tests" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    slurm-wlm slurmdbd munge mariadb-server openssh-server rsync >/dev/null; } || \
	  echo "no Slurm here: its tests will be skipped"

# A page that a command writes is opened in a real browser.
browser:
	@command -v chromium >/dev/null || { \
	  command -v apt-get >/dev/null && test "$$(id -u)" = 0 && echo "installing Chromium for the tests" && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium here: the test of pages will be skipped"

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-oldest-launcher build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
