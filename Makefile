# What a newcomer and CI type. `make` alone lists the targets.
# An interpreter that does not suit or run is passed over; `make PYTHON=/path/to/python` sets one.

VENV   := .venv
BIN    := $(VENV)/bin
PYTHON :=
LOCK   := .cache/lock
COMPOSE := docker compose -f deploy/compose.yaml

# What `make up` serves; absolute, because compose takes paths from its own folder.
KEYFOLD_BUNDLE ?= $(CURDIR)/deploy/local/demo/bundle

# By running each: a pyenv shim or a Debian without python3-venv exists but does not work.
suits := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
find_python = for p in $(or $(PYTHON),python3.12 python3.11 python3.13 python3 python); do \
	"$$p" -c '$(suits)' >/dev/null 2>&1 && { echo "$$p"; break; }; done

# $(call install,EXTRAS,WHAT,STAMPS): a line per large download, all of pip's words in a log.
define install
	@echo "Installing $(2) into $(VENV) ..."
	@{ $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off \
		-c constraints.txt $(1) 2>&1; echo "pip ended with $$?"; } \
		| tee $(VENV)/install.log \
		| awk '/^ *(Downloading|Using cached) .*[0-9.]+ MB\)/ { \
				sub(/^ *(Downloading|Using cached) /, ""); split($$1, wheel, "-"); \
				print "  " wheel[1], wheel[2], $$2, $$3; fflush() } \
			/^Installing collected/ { print "  unpacking", NF - 3, "packages ..."; fflush() }'
	@grep -q '^pip ended with 0$$' $(VENV)/install.log \
		|| { tail -n 20 $(VENV)/install.log; echo "Installing failed; see $(VENV)/install.log"; exit 1; }
	@touch $(addprefix $(VENV)/installed-,$(3))
endef

.DEFAULT_GOAL := help
.PHONY: help demo demo-quick test unit integration long check format bench bench-outputs native-fuzz \
	simulate faults accuracy up down lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed-demo ## train, export, serve, kill and verify on real data (5 minutes)
	@$(BIN)/python deploy/local/demo.py $(ARGS)

demo-quick: $(VENV)/installed-quick ## the same with a ready bundle, without TensorFlow (1 minute)
	@$(BIN)/python deploy/local/demo.py --quick $(ARGS)

test: unit integration ## every test, with a real Kafka where Java and Maven are installed

unit: $(VENV)/installed-dev ## the tests that need no services
	$(BIN)/pytest -m "not integration" -n $(or $(JOBS),2) --dist loadfile $(ARGS)

# Side by side: they wait for services more than they compute. Each of JOBS has its own services.
integration: $(VENV)/installed-dev ## the tests on Kafka and Valkey, which they start themselves
	@$(BIN)/python deploy/local/prepare_kafka.py
	$(BIN)/pytest -m "integration and not long" -n $(or $(JOBS),3) --dist loadfile $(ARGS)

long: $(VENV)/installed-dev ## tests that wait for real time limits, minutes each
	@$(BIN)/python deploy/local/prepare_kafka.py
	$(BIN)/pytest -m long $(ARGS)

check: $(VENV)/installed-dev ## format, lint, types, imports, deployment files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p keyfold.worker -p keyfold.training -p keyfold.export
	$(BIN)/mypy deploy tests
	$(BIN)/lint-imports
	$(BIN)/yamllint --strict .
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/hadolint --failure-threshold info deploy/Dockerfile
	bash -n .ci/run
	sh -n deploy/retrain/retrain.sh
	@if docker compose version >/dev/null 2>&1; then set -x; $(COMPOSE) config --quiet; fi

check: export MYPYPATH := .types:deploy:tests/support:tests/faults:tests/bench:tests

format: $(VENV)/installed-dev ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed-dev ## measure speed, latency, memory: make bench PEERS=1 QUICK=1
	@$(BIN)/python deploy/local/prepare_kafka.py
	PYTHONPATH=deploy:tests/support $(BIN)/python tests/bench/run.py \
		$(if $(PEERS),--peers) $(if $(QUICK),--quick) $(ARGS)

bench-outputs: $(VENV)/installed-dev ## measure what exactly-once outputs cost
	@$(BIN)/python deploy/local/prepare_kafka.py
	PYTHONPATH=deploy:tests/support $(BIN)/python tests/bench/outputs.py $(ARGS)

native-fuzz: $(VENV)/installed-dev ## hostile bytes for the native module: make native-fuzz N=1000000 SEED=1
	PYTHONPATH=tests/support $(BIN)/python tests/support/native_fuzz.py \
		--cases $(or $(N),200000) --seed $(or $(SEED),1)

simulate: $(VENV)/installed-dev ## run the protocol through random faults: make simulate N=100000 SEED=1
	@PYTHONPATH=tests $(BIN)/python -m simulator --schedules $(or $(N),10000) --seed $(or $(SEED),1) $(ARGS)

faults: $(VENV)/installed-dev ## break real workers, Kafka and Redis: make faults N=20 SEED=1
	@$(BIN)/python deploy/local/prepare_kafka.py
	@PYTHONPATH=deploy:tests/support:tests/faults $(BIN)/python -m campaign \
		--n $(or $(N),20) --seed $(or $(SEED),1) $(if $(KINDS),--kinds $(KINDS)) $(ARGS)

accuracy: $(VENV)/installed-dev ## train, stream, judge: make accuracy DATA=FOLDER TASK=smap SEEDS=1
	@$(BIN)/python deploy/local/prepare_kafka.py
	PYTHONPATH=deploy:tests/support:tests $(BIN)/python -m accuracy "$(DATA)" \
		$(if $(TASK),--task $(TASK)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

up: ## run Kafka, Valkey and a worker in containers
	@docker compose version >/dev/null 2>&1 || { echo "make up needs Docker and its compose plugin"; \
		exit 1; }
	@test -f "$(KEYFOLD_BUNDLE)/manifest.json" || { echo "no bundle in $(KEYFOLD_BUNDLE):" \
		"make up KEYFOLD_BUNDLE=/absolute/path/of/a/bundle"; exit 1; }
	KEYFOLD_BUNDLE="$(KEYFOLD_BUNDLE)" $(COMPOSE) up --build --detach --wait worker
	@echo "Send sample events:  $(COMPOSE) run --rm sender"
	@echo "Watch predictions:   $(COMPOSE) exec worker keyfold-tail --brokers kafka:9092 predictions"

down: ## stop those containers and delete their data
	$(COMPOSE) --profile sample down --volumes

lock: $(LOCK)/bin/uv ## choose newer versions for constraints.txt (UPGRADE=1: of everything)
	$(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --all-extras \
		--no-annotate --no-header --no-emit-find-links $(if $(UPGRADE),--upgrade) \
		-o constraints.txt pyproject.toml deploy/lint-requirements.txt

clean: ## delete what was installed, downloaded and produced here
	rm -rf $(VENV) .cache out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache worker/native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@python=$$($(find_python)); \
	if [ -z "$$python" ]; then \
		echo "keyfold needs Python 3.11, 3.12 or 3.13 with venv, and none was found that runs."; \
		echo "Debian and Ubuntu: apt-get install python3-venv. Elsewhere: make PYTHON=/path/to/it"; \
		exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" -V)"; \
	"$$python" -m venv --clear $(VENV)

# What pip builds where there is a compiler, and anew when it changes.
NATIVE := $(wildcard worker/native/*.cpp worker/native/*.h)

# Each set holds the ones before it, so that its stamp stands for them too.
$(VENV)/installed-quick: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(call install,-e '.[worker$(,)local]',the worker and the local services,quick)

$(VENV)/installed-demo: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(call install,-e '.[worker$(,)local$(,)training$(,)export]',keyfold with TensorFlow (350 MB),quick demo)

$(VENV)/installed-dev: pyproject.toml constraints.txt deploy/lint-requirements.txt $(NATIVE) | $(BIN)/python
	$(call install,-e '.[worker$(,)local$(,)training$(,)export$(,)dev]' -r deploy/lint-requirements.txt,keyfold \
		with TensorFlow (350 MB) and the tools,quick demo dev)

$(LOCK)/bin/uv: | $(BIN)/python
	@$(BIN)/python -m venv $(LOCK)
	@$(LOCK)/bin/python -m pip install --quiet --disable-pip-version-check uv

, := ,
