# What a developer types; `make test` is the one that decides. Needs Debian 12 or 13, with root or sudo.

VENV := .venv
PYTHON := $(VENV)/bin/python
GUEST := tests/lab/guest.py
PYTEST := $(PYTHON) -m pytest -q --durations 15 --durations-min 5
# One kernel test by name: make kernel K=test_exact_size
K :=
# What hangs is ended then.
LIMIT := --timeout 180
# Jobs at once. Most of them wait more than they compute.
JOBS := $(shell expr 2 '*' $$(nproc))

.PHONY: help test lanes test-all provision lint unit unit-all libraries servers kernel matrix boot root soak rounds shell \
	demo bench deb package clean

## what is merged has passed it: linters, unit tests, real servers, three kernels, boots, the package
test: provision $(VENV)/installed
	$(MAKE) --no-print-directory -j$(JOBS) -Otarget lanes
	@echo "make test: all passed"

# The longest first. Both backends are tested whole on one kernel, and by what is essential on the others.
GUESTS := 7.2+netlink+1of2 7.2+netlink+2of2 6.12+ioctl+1of2 6.12+ioctl+2of2 6.1+essential-netlink 6.1+essential-ioctl \
	6.12+essential-netlink 7.2+essential-ioctl 6.1+udev
lanes: $(GUESTS:%=guest+%) boot package unit-all servers lint

## everything, with what is slow or rare: a matrix of kernels and releases, all boots, machines without a disk, soaks
test-all: test
	$(MAKE) --no-print-directory libraries boot-all root matrix rounds soak

## this list
help:
	@awk '/^## / { text = substr($$0, 4) } \
		/^[a-z][^ :=]*:/ && text != "" { sub(/:.*/, ""); printf "make %-19s  %s\n", $$0, text; text = "" }' $(MAKEFILE_LIST)

## install the Debian packages that the tests need
provision:
	tests/lab/provision
	tests/lab/kernels.py >/dev/null

# What one target needs of Debian, and no more: see the sets there.
provision-%:
	tests/lab/provision $*

$(VENV)/installed: pyproject.toml | provision-venv
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

SCRIPTS := .ci/run systemd/nbdattach-tag systemd/nbdattach-generator initramfs/initramfs-tools/hooks/nbdattach \
	initramfs/initramfs-tools/scripts/local-top/nbdattach $(wildcard initramfs/dracut/90nbdattach/*.sh) \
	tests/lab/archive tests/lab/fetch tests/lab/provision tests/lab/init tests/lab/init-job tests/lab/initramfs-init \
	tests/lab/selftest.sh tests/demo/demo tests/demo/demo.sh tests/diskless/image \
	tests/unit/on_each_python tests/unit/on_each_library tests/unit/on_this_system

## ruff, mypy and shellcheck
lint: provision-lint $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	shellcheck $(SCRIPTS)

## unit tests, in seconds, without root and without a server
unit: provision-unit $(VENV)/installed
	$(PYTEST) $(LIMIT) tests/unit

## the unit tests on every Python from 3.11 up that is installed
unit-all: $(VENV)/installed
	tests/unit/on_each_python --durations 15 --durations-min 5 $(LIMIT)

## what depends on click and pyroute2, with each version of them; and everything with those of this system
libraries: $(VENV)/installed
	tests/unit/on_each_library
	tests/unit/on_this_system

## the protocol against real NBD servers, without a kernel
servers: $(VENV)/installed
	$(PYTEST) $(LIMIT) tests/servers

# One suite on one kernel, on this machine's root; see tests/matrix.py for the suites and for other roots.
KERNEL := 7.2
in_guest = $(PYTHON) tests/matrix.py --root here $(if $(K),-k $(K))

## kernel tests of both backends; one by name on one kernel: make kernel K=test_exact_size KERNEL=6.1
kernel: $(VENV)/installed
	$(in_guest) --kernel $(KERNEL) --suite netlink
	$(in_guest) --kernel $(KERNEL) --suite ioctl

# guest+KERNEL+SUITE, or guest+KERNEL+SUITE+KofN for a share of the suite
guest+%: $(VENV)/installed
	$(in_guest) --kernel $(word 1,$(subst +, ,$*)) --suite $(word 2,$(subst +, ,$*)) \
		--share $(or $(word 3,$(subst +, ,$*)),1of1)

## suites on kernels and on the roots of Debian 12, 13 and sid, with rare tests; two hours: see tests/matrix.py
matrix: provision $(VENV)/installed
	$(PYTHON) tests/matrix.py --rare

## machines without a disk, whose root is on NBD: emulated, 10 minutes; of another release: make root LAB_RELEASE=trixie
root: $(VENV)/installed
	$(PYTEST) --timeout 900 $(if $(K),-k $(K)) tests/diskless

## guests that boot systemd, with servers outside of them; of another release: make boot LAB_ROOT=trixie LAB_KERNEL=6.12
# Their network is one of their own, so that the machine's is not touched.
boot: deb $(VENV)/installed
	unshare --net $(PYTEST) --timeout 400 $(if $(K),-k $(K)) tests/boot

## a shell in a guest, with nbdattach on its PATH: make shell KERNEL=6.12
shell: $(VENV)/installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(GUEST) --kernel $(KERNEL) --shell

## the main job, step by step, in a guest that is thrown away
demo:
	tests/demo/demo

## measure the ratios to nbd-client and qemu-nbd
bench: provision $(VENV)/installed
	$(PYTHON) tests/bench/bench.py

## the Debian package, as dist/nbdattach_VERSION_all.deb; from what the source distribution holds
deb: provision-deb
	rm -rf build/deb
	mkdir -p build/deb dist
	/usr/bin/python3 -m build --no-isolation --sdist --outdir build/deb . >build/deb/log 2>&1 || { cat build/deb/log; false; }
	tar -xzf build/deb/nbdattach-*.tar.gz -C build/deb
	cd build/deb/nbdattach-*/ && { dpkg-buildpackage --ignore-builtin-builddeps -us -uc -b >../log 2>&1 || { cat ../log; false; }; }
	cp build/deb/*.deb dist/

## what the package does when it is installed, in a guest
package: deb $(VENV)/installed
	lintian --allow-root --fail-on error,warning dist/nbdattach_*.deb
	$(PYTEST) $(LIMIT) tests/package/test_distributions.py
	$(GUEST) --timeout 900 -- $(PYTEST) $(LIMIT) $(if $(K),-k $(K)) --ignore=tests/package/test_distributions.py tests/package

## remove everything that make has made here
clean:
	rm -rf .venv .venv-* build dist *.egg-info

## a thousand server restarts under load, half an hour
soak: $(VENV)/installed
	$(GUEST) --timeout 7000 --env LAB_BACKEND=netlink --env SOAK_ROUNDS=1000 -- $(PYTEST) -s tests/kernel/test_soak.py

## 500 rounds of each backend with udevd, and a program that opens and closes the node all the time, half an hour
rounds: $(VENV)/installed
	$(GUEST) --timeout 5000 --udev --env ROUNDS=500 -- $(PYTEST) -s tests/kernel/test_rounds.py
