# make demo    a disposable host on this machine, served by the literal command
# make test    everything: linters, types, unit tests, real hosts
# Both set up what they need: Debian packages (as root) and a virtual environment in .venv.

SHELL := /bin/bash
PYTHON ?= python3.11
RELEASE ?= trixie
TESTS ?= tests/roles tests/e2e
WORKERS ?= 4
RUN := .venv/bin/python -m
# Test hosts: systemd-nspawn in network namespaces, root file systems by mmdebstrap. QEMU for what needs its own kernel.
LAB_PACKAGES := mmdebstrap systemd-container debian-archive-keyring iproute2 nftables openssh-client e2fsprogs \
	qemu-system-x86 qemu-utils
# Doubles of NVIDIA's library, packages and repository are built by the tests.
TEST_PACKAGES := gcc libc6-dev gpg gpg-agent
VAGRANT_PACKAGES := vagrant vagrant-libvirt libvirt-daemon-system libvirt-daemon libvirt-clients dnsmasq-base \
	ebtables dbus
APT := DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 \
	-o Acquire::Retries=3

.PHONY: help setup lab-packages test-packages vagrant-packages demo test lint unit hosts slow-test vagrant-test bench docs gpu-table clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/ready ## Virtual environment with everything pinned in uv.lock

.venv/ready: uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11)' 2>/dev/null || \
		{ echo "gpurack needs Python 3.11 or newer: install it, or name it with PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -m ensurepip --version >/dev/null 2>&1 || { $(APT) update && $(APT) install python3-venv; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet uv
	@UV_PROJECT_ENVIRONMENT=.venv .venv/bin/uv sync --locked --quiet
	@touch $@

define install # packages that are missing
	@missing=""; for p in $(1); do \
		[ "$$(dpkg-query -Wf '$${db:Status-Status}' $$p 2>/dev/null)" = installed ] || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		[ "$$(id -u)" = 0 ] || { echo "test hosts need root, and these packages:$$missing" >&2; exit 2; }; \
		echo "installing:$$missing"; \
		{ $(APT) update && $(APT) install --no-install-recommends $$missing; } >/tmp/gpurack-apt.log 2>&1 || \
			{ tail -n 20 /tmp/gpurack-apt.log >&2; exit 2; }; \
	fi
endef

lab-packages:
	$(call install,$(LAB_PACKAGES))

test-packages:
	$(call install,$(LAB_PACKAGES) $(TEST_PACKAGES))

vagrant-packages:
	$(call install,$(LAB_PACKAGES) $(VAGRANT_PACKAGES))

demo: setup lab-packages ## Boot a disposable host, make it serve, ask it a question, run again
	@.venv/bin/gpurack lab demo --release $(RELEASE)

test: lint unit hosts vagrant-test ## Everything but slow-test

lint: setup ## ruff and strict types
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

unit: setup test-packages ## Tests that need no host (one process: pyinfra_cli patches the standard library, under which xdist hangs)
	$(RUN) pytest tests/unit -q

hosts: setup test-packages ## Tests on real systemd hosts
	$(RUN) pytest $(TESTS) -m "not slow" -n $(WORKERS) --dist loadfile

slow-test: setup test-packages ## Kernel updates and reboots with the driver, in a virtual machine under emulation
	$(RUN) pytest tests/e2e -m slow

vagrant-test: setup vagrant-packages ## The Vagrantfile, the literal command and all checks on a virtual machine
	@.venv/bin/gpurack lab vagrant-test

bench: setup lab-packages ## Compare with stock pyinfra and with Ansible on the same host
	@UV_PROJECT_ENVIRONMENT=.venv .venv/bin/uv sync --locked --quiet --group bench
	$(RUN) benchmarks

docs: setup ## Regenerate docs/settings.md from the roles' models
	@$(RUN) gpurack.reference > docs/settings.md

gpu-table: setup ## Regenerate the table of GPUs; PCI_IDS=FILE of a newer release's package pci.ids
	$(if $(PCI_IDS),,$(call install,pci.ids))
	$(RUN) gpurack.gpu.table $(PCI_IDS)

clean: ## Remove test hosts and the virtual environment
	-.venv/bin/gpurack lab down --all
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
