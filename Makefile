# SPDX-License-Identifier: GPL-2.0-or-later
# What a developer types; `sudo make test` is the one that decides. Needs Debian 12 or 13. The targets that need root say so.

VENV := .venv
PYTHON := $(VENV)/bin/python
GUEST := tests/lab/guest.py
PYTEST := $(PYTHON) -m pytest -q --durations 15 --durations-min 5
# One kernel test by name: make kernel K=test_exact_size
K :=
# What hangs is ended then.
LIMIT := --timeout 180
# By a path, which each start of Python in a guest reads sooner than it runs a finder.
EDITABLE := --config-settings editable_mode=compat --editable
# Jobs at once: with three a core, a sixth of the time no job had work.
JOBS := $(shell expr 4 '*' $$(nproc))

# What make test runs, the longest first. Both backends are tested on one kernel, a test that
# holds for both by netlink; on 6.1 by what is essential. 6.12 is in the matrix only: on a busy machine its user-mode Linux dies in fork at times.
LONGEST := 7.2+netlink+1of4 7.2+netlink+2of4 7.2+netlink+3of4 7.2+netlink+4of4
GUESTS := 7.2+ioctl-only 6.1+essential-netlink+1of2 6.1+essential-netlink+2of2 6.1+essential-ioctl-only 7.2+udev
LANES := $(LONGEST:%=guest+%) unit-ends root .package-as-built .boot-as-built $(GUESTS:%=guest+%) servers libraries-oldest lint

.PHONY: help test test-all provision lint unit unit-all unit-ends libraries libraries-oldest servers far neighbours kernel matrix boot boot-all root root-all \
	catalogue selftest soak rounds events shell demo bench deb package extras remove-extras fresh clean

## what is merged has passed it: linters, unit tests, real servers, two kernels, boots, the package
# The packages come first: make starts a lane that needs something after all that need nothing.
test: .needs-root provision $(VENV)/installed
	$(MAKE) --no-print-directory -j$(JOBS) -Otarget deb dist/before/nbdattach.deb
	$(MAKE) --no-print-directory -j$(JOBS) -Otarget $(LANES)
	@echo "make test: all passed"

## everything, with what is slow or rare: a matrix of kernels and releases, all boots, machines without a disk, soaks
test-all: .needs-root test
	$(MAKE) --no-print-directory unit-all libraries far neighbours selftest fresh boot-all root-all matrix rounds soak events

# The first thing that such a target does.
ASKED = $(or $(MAKECMDGOALS),test)
.needs-root:
	@[ "$$(id -u)" -eq 0 ] || \
		{ echo "make $(ASKED): needs root, for its networks and file systems: sudo make $(ASKED)"; exit 1; }

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
	$(PYTHON) -m pip install --quiet --disable-pip-version-check $(EDITABLE) '.[test]'
	$(PYTHON) -m compileall -q nbdattach # else each guest does that for itself, and then forgets it
	touch $@

SCRIPTS := .ci/run systemd/nbdattach-tag systemd/nbdattach-generator initramfs/initramfs-tools/hooks/nbdattach \
	initramfs/initramfs-tools/scripts/local-top/nbdattach $(wildcard initramfs/dracut/90nbdattach/*.sh) \
	tests/lab/archive tests/lab/fetch tests/lab/provision tests/lab/init tests/lab/init-job tests/lab/initramfs-init \
	tests/lab/selftest.sh tests/demo/demo tests/demo/demo.sh tests/diskless/image \
	tests/unit/on_each_python tests/unit/on_each_library tests/unit/on_this_system tests/lint/example tests/lint/types

## ruff, mypy, shellcheck, and words that hide the actor
lint: provision-lint $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	tests/lint/types
	tests/lint/example
	$(PYTHON) tests/lint/english.py
	shellcheck $(SCRIPTS)
	shellcheck --external-sources findings/lib $(wildcard findings/*.sh)

## unit tests, in seconds, without root and without a server
unit: provision-unit $(VENV)/installed
	$(PYTEST) $(LIMIT) tests/unit

## the unit tests on every Python from 3.11 up that is installed
unit-all: $(VENV)/installed
	tests/unit/on_each_python --durations 15 --durations-min 5 $(LIMIT)

## the same on the oldest and the newest of them
unit-ends: $(VENV)/installed
	tests/unit/on_each_python --ends --durations 15 --durations-min 5 $(LIMIT)

## what depends on click and pyroute2, with each version of them; and everything with those of this system
libraries: $(VENV)/installed
	tests/unit/on_each_library
	tests/unit/on_this_system

## the same with the lowest versions that pyproject.toml allows, in a quarter of a minute
libraries-oldest: $(VENV)/installed
	tests/unit/on_each_library --oldest

## the protocol against real NBD servers, without a kernel
servers: $(VENV)/installed
	$(PYTEST) $(LIMIT) tests/servers

## disks over SSH and in S3, attached in a guest by the commands that the man page has
far: .needs-root $(VENV)/installed
	tests/lab/provision far
	[ -x build/far/bin/moto_server ] || { python3 -m venv build/far && build/far/bin/pip install -q 'moto[server]==5.2.5'; }
	timeout 1500 $(GUEST) --kernel 7.2 --timeout 1400 -- $(PYTEST) tests/kernel/far_disks.py

## what people build on a device or run beside it: file systems on several disks, caches, frozen programs, udisks; six minutes
neighbours: .needs-root deb $(VENV)/installed
	tests/lab/provision neighbours
	timeout 900 $(GUEST) --kernel $(KERNEL) --memory 1G --timeout 880 --env LAB_BACKEND=netlink -- \
		$(PYTEST) tests/kernel/neighbours.py
	unshare --net $(PYTEST) --timeout 300 tests/boot/neighbours.py

## start each server of the catalogue in a guest, drive it, and write doc/servers.md; 40 minutes; O='--only NAME' for some
catalogue: .needs-root provision $(VENV)/installed
	$(PYTHON) tests/catalogue/run $(O)

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
matrix: .needs-root provision $(VENV)/installed
	$(PYTHON) tests/matrix.py --rare

# By its name, a test runs in any case.
NOT_RARE = $(if $(K),-k $(K),-m "not rare")

## machines without a disk, whose root is on NBD; of another release: make root-all LAB_RELEASE=trixie
# In a network of their own, so that the machine's is not touched; what they are made of is fetched before.
root: .needs-root $(VENV)/installed
	tests/diskless/image 7.2
	unshare --net $(PYTEST) --timeout 900 $(NOT_RARE) tests/diskless

## the same with emulated ones, half an hour
root-all: .needs-root $(VENV)/installed
	tests/diskless/image 7.2
	tests/diskless/image $(or $(LAB_KERNEL),6.12)-qemu
	unshare --net $(PYTEST) --timeout 1500 tests/diskless

## guests that boot systemd, with servers outside of them; of another release: make boot LAB_ROOT=trixie LAB_KERNEL=6.12
boot: .needs-root deb $(VENV)/installed
	$(MAKE) --no-print-directory .boot-as-built

.boot-as-built:
	unshare --net $(PYTEST) --timeout 900 $(NOT_RARE) tests/boot

## all of them
boot-all: .needs-root deb $(VENV)/installed
	unshare --net $(PYTEST) --timeout 900 tests/boot

## what tests/lab/README.md promises of guests, on each kernel of user-mode Linux; five minutes
selftest: provision
	tests/lab/selftest.sh 6.1 6.12 7.2

## a shell in a guest, with nbdattach on its PATH: make shell KERNEL=6.12
shell: $(VENV)/installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(GUEST) --kernel $(KERNEL) --shell

## the main job, step by step, in a guest that is thrown away
demo:
	tests/demo/demo

## measure the ratios to nbd-client, qemu-nbd and an earlier build, and name the aims that are missed
bench: provision $(VENV)/installed
	$(PYTHON) tests/bench/bench.py

require_ours = for made in build dist *.egg-info; do [ ! -e $$made ] || [ -w $$made ] || \
	{ echo "make $@: $$made is not yours, as sudo pip leaves it: sudo rm -r $$made"; exit 1; }; done

## the Debian package, as dist/nbdattach_VERSION_all.deb; from what the source distribution holds
deb: provision-deb
	@$(require_ours)
	rm -rf build/deb
	mkdir -p build/deb dist
	/usr/bin/python3 -m build --no-isolation --sdist --outdir build/deb . >build/deb/log 2>&1 || { cat build/deb/log; false; }
	tar -xzf build/deb/nbdattach-*.tar.gz -C build/deb
	cd build/deb/nbdattach-*/ && { dpkg-buildpackage --ignore-builtin-builddeps -us -uc -b >../log 2>&1 || { cat ../log; false; }; }
	cp build/deb/*.deb dist/

# The man pages and the completions, for an installation by pipx or in a venv: below the prefix of the environment, where
# both put them, no program looks.
PREFIX := /usr/local
EXTRAS := $(foreach page,$(wildcard man/*.[578]),$(page):share/man/man$(subst .,,$(suffix $(page)))) \
	completions/bash/nbdattach:share/bash-completion/completions \
	completions/zsh/_nbdattach:share/zsh/site-functions \
	completions/fish/nbdattach.fish:share/fish/vendor_completions.d

# What pip leaves in a checkout that it installs from. After sudo it is root's, and the user's next build fails.
OF_PIP := build/lib $(wildcard build/bdist.*) nbdattach.egg-info

## man pages and completions below PREFIX (/usr/local); what pip has left in the checkout is removed
extras:
	@$(foreach one,$(EXTRAS),install -D -m 644 $(subst :, -t $(PREFIX)/,$(one)) &&) :
	@rm -rf $(OF_PIP); [ ! -d build ] || rmdir --ignore-fail-on-non-empty build

## away with them
remove-extras:
	rm -f $(foreach one,$(EXTRAS),$(PREFIX)/$(lastword $(subst :, ,$(one)))/$(notdir $(firstword $(subst :, ,$(one)))))

## README's commands to install, to run the demo and the linters and to uninstall, and lintian, on fresh systems; 15 minutes
fresh: .needs-root provision $(VENV)/installed
	$(PYTEST) --timeout 900 $(if $(K),-k $(K)) tests/fresh

# The last commit whose modules were all in one folder: an upgrade from its package costs no attachment.
BEFORE_ROOMS := 805a54f
dist/before/nbdattach.deb: | provision-deb
	rm -rf build/before
	mkdir -p build/before dist/before
	git archive $(BEFORE_ROOMS) | tar -x -C build/before
	$(MAKE) --no-print-directory -C build/before deb
	cp build/before/dist/nbdattach_*_all.deb $@

## what the package does when it is installed, in a guest
package: deb dist/before/nbdattach.deb $(VENV)/installed
	$(MAKE) --no-print-directory .package-as-built

.package-as-built:
	lintian --allow-root --fail-on error,warning dist/nbdattach_*.deb
	$(PYTEST) $(LIMIT) tests/package/test_distributions.py
	$(GUEST) --kernel $(KERNEL) --timeout 900 -- $(PYTEST) $(LIMIT) $(if $(K),-k $(K)) --ignore=tests/package/test_distributions.py tests/package

## remove everything that make has made here
clean:
	@$(require_ours)
	rm -rf .venv .venv-* build dist *.egg-info

## a thousand server restarts under load, half an hour
soak: $(VENV)/installed
	$(GUEST) --timeout 7000 --env LAB_BACKEND=netlink --env SOAK_ROUNDS=1000 -- $(PYTEST) -s tests/kernel/test_soak.py

## 200 server events under verified fio, on three devices, one of them TLS; a quarter of an hour a kernel
events: $(VENV)/installed
	for kernel in 6.1 7.2; do \
		$(GUEST) --kernel $$kernel --timeout 9000 --env LAB_BACKEND=netlink --env EVENTS=200 -- \
			$(PYTEST) -s tests/kernel/test_events.py || exit 1; \
	done

## 500 rounds of each backend with udevd, and a program that opens and closes the node all the time, half an hour
rounds: $(VENV)/installed
	$(GUEST) --timeout 5000 --udev --env ROUNDS=500 -- $(PYTEST) -s tests/kernel/test_rounds.py
