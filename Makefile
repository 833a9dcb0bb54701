# make setup | test | fast | demo | lint | env    [ROS=jazzy|kilted] [PYTHON=python3.12] [ARGS='-k name']
# Only a Python with venv, a C++ compiler and make are needed; everything else is installed into .venv*.
SHELL := bash
export ROS ?=
ARGS ?=

.PHONY: help setup test fast demo lint env clean

help:
	@echo 'make setup  virtual environment, packages, messages (ROS=jazzy or kilted; PYTHON=python3.12)'
	@echo 'make test   all tests          make fast   those without the mark slow      ARGS="-k name" goes to pytest'
	@echo 'make demo   render a room, map it, localise in it live, and report'
	@echo 'make lint   ruff               make env    how to use it all from your shell'

setup:
	@bash tools/setup.sh

test: setup
	@set -e; . tools/env.sh; cd $(CURDIR); pytest $(ARGS)

fast: setup
	@set -e; . tools/env.sh; cd $(CURDIR); pytest -m 'not slow' $(ARGS)

demo: setup
	@set -e; . tools/env.sh; bash tools/demo.sh

lint: setup
	@set -e; . tools/env.sh; ruff check .

env: setup
	@echo 'source tools/env.sh $(ROS)'

clean:
	rm -rf build install log .venv .venv-* .setup
