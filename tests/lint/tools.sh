#!/bin/bash
# Other people's checkers over our scripts, manuals, documents and the unit file. Each must be silent, not only return 0:
# systemd-analyze, for one, returns 0 on a misspelt option.
set -u
src=${TOP_SRCDIR:-.}
build=${TOP_BUILDDIR:-.}
n=0
failed=0
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

check() { # NAME TOOL COMMAND...: ok when the command succeeds and says nothing
	local name=$1 tool=$2
	shift 2
	n=$((n + 1))
	if ! command -v "$tool" >/dev/null; then
		echo "ok $n # SKIP $tool is not installed"
	elif "$@" >"$work/out" 2>&1 && [ ! -s "$work/out" ]; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		sed 's/^/# /' "$work/out"
		failed=1
	fi
}

shell_scripts() {
	(cd "$src" && find . -path ./.git -prune -o -name node_modules -prune -o -name .tools -prune -o -path ./build-aux -prune -o \
		-type f -size -100k -print | while read -r f; do
		head -c 40 "$f" | head -n 1 | grep -qE '^#!.*(bash|/sh)\b' && case $f in ./configure* | ./config.status | ./libtool) ;; *) echo "$f" ;; esac
	done)
}

run_shellcheck() {
	local scripts
	mapfile -t scripts < <(shell_scripts)
	[ "${#scripts[@]}" -ge 5 ] || { echo "only ${#scripts[@]} shell scripts found"; return 1; }
	(cd "$src" && shellcheck -x "${scripts[@]}")
}

run_codespell() {
	(cd "$src" && find . -path ./.git -prune -o -name node_modules -prune -o -name .tools -prune -o -path ./build-aux -prune -o -path ./m4 -prune -o \
		-type f \( -name '*.[ch158]' -o -name '*.md' -o -name '*.sh' -o -name '*.py' -o -name '*.yaml' -o -name '*.def' -o -name '*.inc' \
		-o -name '*.am' -o -name '*.ac' -o -name '*.in' -o -name bootstrap \) ! -name aclocal.m4 ! -name config.h.in ! -name Makefile.in -print0 |
		xargs -0 codespell -L "$(paste -sd, tests/lint/words)")
}

run_mandoc() {
	mandoc -Tlint -W warning "$src/docs/refreshd.8" "$src/docs/refreshctl.1" "$src/docs/refreshd.yaml.5"
}

# The unit names programs where they will be installed; here they are where they were built.
run_unit_verify() {
	sed -E "s,^(Exec[A-Za-z]+=)[^ ]*/refreshd,\\1$build/refreshd," "$build/systemd/refreshd.service" >"$work/refreshd.service"
	systemd-analyze verify --man=no "$work/refreshd.service"
}

run_unit_score() {
	local stated measured
	stated=$(sed -nE 's/.*gives it ([0-9.]+ [A-Z]+)\..*/\1/p' "$build/systemd/refreshd.service")
	measured=$(systemd-analyze security --offline=true --no-pager "$build/systemd/refreshd.service" |
		sed -nE 's/.*exposure level for [^ ]+ ([0-9.]+ [A-Z]+).*/\1/p')
	[ -n "$stated" ] && [ "$stated" = "$measured" ] || echo "the unit states '$stated', systemd-analyze measures '$measured'"
}

check "shell scripts" shellcheck run_shellcheck
check "spelling" codespell run_codespell
check "manual pages" mandoc run_mandoc
check "the unit file" systemd-analyze run_unit_verify
check "the sandbox scores what the unit file states" systemd-analyze run_unit_score
echo "1..$n"
exit "$failed"
