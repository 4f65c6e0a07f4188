# What a developer types; `make test` is the one that decides. Needs Debian 12 or 13, with root or sudo.

VENV := .venv
PYTHON := $(VENV)/bin/python
GUEST := tests/lab/guest.py
PYTEST := $(PYTHON) -m pytest -q --durations 15 --durations-min 5
# One kernel test by name: make kernel K=test_exact_size
K :=
# What hangs is ended then; emulated machines are slow.
LIMIT := --timeout 180
EMULATED := --timeout 400

.PHONY: test lanes provision lint unit unit-all servers kernel kernel-netlink kernel-udev kernel-6.12 \
	kernel-6.12-netlink boot root soak rounds shell demo bench deb package extras remove-extras fresh clean

## everything: linters and types, unit tests on every Python here, real servers, both kernels in guests
test: provision $(VENV)/installed
	$(MAKE) --no-print-directory -j2 -Otarget lanes
	@echo "make test: all passed"

# Two lanes of about the same length, one a core; the slow guests begin first.
lanes: kernel-netlink kernel root kernel-6.12 kernel-6.12-netlink boot package lint unit-all servers kernel-udev

provision:
	tests/lab/provision

# What one target needs of Debian, and no more: see the sets there.
provision-%:
	tests/lab/provision $*

$(VENV)/installed: pyproject.toml | provision-venv
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

lint: provision-lint $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	shellcheck tests/lab/provision tests/lab/init tests/lab/init-job tests/lab/initramfs-init tests/lab/selftest.sh \
		tests/demo/demo tests/demo/demo.sh tests/unit/on_each_python .ci/run systemd/nbdattach-tag systemd/nbdattach-generator \
		initramfs/initramfs-tools/hooks/nbdattach initramfs/initramfs-tools/scripts/local-top/nbdattach \
		initramfs/dracut/90nbdattach/*.sh tests/diskless/image

unit: provision-unit $(VENV)/installed
	$(PYTEST) $(LIMIT) tests/unit

unit-all: $(VENV)/installed
	tests/unit/on_each_python

servers: $(VENV)/installed
	$(PYTEST) $(LIMIT) tests/servers

kernel: $(VENV)/installed
	$(GUEST) --timeout 3600 --env NBDATTACH_DEVICE=/dev/nbd3 -- $(PYTEST) $(LIMIT) -m "not udev and not stock and not netlink" $(if $(K),-k $(K)) tests/kernel $(if $(K),,tests/unit/test_fake_kernel.py)

kernel-netlink: $(VENV)/installed
	$(GUEST) --timeout 3600 --env LAB_BACKEND=netlink -- $(PYTEST) $(LIMIT) -m "not udev and not stock and not ioctl" $(if $(K),-k $(K)) tests/kernel

kernel-udev: $(VENV)/installed
	$(GUEST) --timeout 900 --udev -- $(PYTEST) $(LIMIT) -m udev $(if $(K),-k $(K)) tests/kernel

kernel-6.12: $(VENV)/installed
	$(GUEST) --timeout 3600 --kernel 6.12 -- $(PYTEST) $(EMULATED) -m "(essential or stock) and not netlink" $(if $(K),-k $(K)) tests/kernel

kernel-6.12-netlink: $(VENV)/installed
	$(GUEST) --timeout 3600 --kernel 6.12 --env LAB_BACKEND=netlink -- $(PYTEST) $(EMULATED) -m "essential and netlink" $(if $(K),-k $(K)) tests/kernel

## machines without a disk, whose root is on NBD: emulated, 10 minutes
root: $(VENV)/installed
	$(PYTEST) --timeout 900 $(if $(K),-k $(K)) tests/diskless

# Their network is one of their own, so that the machine's is not touched.
boot: deb $(VENV)/installed
	unshare --net $(PYTEST) --timeout 400 $(if $(K),-k $(K)) tests/boot

## a shell in a guest, with nbdattach on its PATH: make shell KERNEL=6.12
KERNEL := 6.1
shell: $(VENV)/installed
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(GUEST) --kernel $(KERNEL) --shell

demo:
	tests/demo/demo

bench: provision $(VENV)/installed
	$(PYTHON) tests/bench/bench.py

## the Debian package, as dist/nbdattach_VERSION_all.deb; from what the source distribution holds
deb: provision-deb
	@for made in build dist *.egg-info; do [ ! -e $$made ] || [ -w $$made ] || \
		{ echo "make deb: $$made is not yours, as sudo pip leaves it: sudo rm -r $$made"; exit 1; }; done
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

## man pages and completions below PREFIX (/usr/local)
extras:
	@$(foreach one,$(EXTRAS),install -D -m 644 $(subst :, -t $(PREFIX)/,$(one)) &&) :

## away with them
remove-extras:
	rm -f $(foreach one,$(EXTRAS),$(PREFIX)/$(lastword $(subst :, ,$(one)))/$(notdir $(firstword $(subst :, ,$(one)))))

## README's commands to install, to run the demo and the linters and to uninstall, and lintian, on fresh systems; 15 minutes
fresh: provision $(VENV)/installed
	$(PYTEST) --timeout 900 $(if $(K),-k $(K)) tests/fresh

## what the package does when it is installed, in a guest
package: deb $(VENV)/installed
	lintian --allow-root --fail-on error,warning dist/nbdattach_*.deb
	$(PYTEST) $(LIMIT) tests/package/test_distributions.py
	$(GUEST) --timeout 900 -- $(PYTEST) $(LIMIT) $(if $(K),-k $(K)) --ignore=tests/package/test_distributions.py tests/package

clean:
	rm -rf .venv .venv-* build dist *.egg-info

## a thousand server restarts under load, half an hour
soak: $(VENV)/installed
	$(GUEST) --timeout 7000 --env LAB_BACKEND=netlink --env SOAK_ROUNDS=1000 -- $(PYTEST) -s tests/kernel/test_soak.py

## 500 rounds of each backend with udevd, and a program that opens and closes the node all the time, half an hour
rounds: $(VENV)/installed
	$(GUEST) --timeout 5000 --udev --env ROUNDS=500 -- $(PYTEST) -s tests/kernel/test_rounds.py
