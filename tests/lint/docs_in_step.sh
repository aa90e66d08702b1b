#!/bin/bash
# The sample file and the OPTIONS part of the manual are those that the table of options gives, and the manual is clean.
# To bring them up to date: tests/lint/docs_in_step.sh --update (TOP_SRCDIR and TOP_BUILDDIR as in a test).
# shellcheck disable=SC2317 # functions that check runs
set -u
src=${TOP_SRCDIR:-.}
gen=${TOP_BUILDDIR:-.}/tests/lint/gen_conf
sample=$src/conf/refreshd.yaml
manual=$src/docs/refreshd.yaml.5
begin='^\.\\" begin generated'
end='^\.\\" end generated'

work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

generate() {
	"$gen" sample >"$work/sample" && "$gen" man >"$work/man"
}

with_generated_part() {
	sed -n "1,/$begin/p" "$manual"
	cat "$work/man"
	sed -n "/$end/,\$p" "$manual"
}

if [ "${1:-}" = --update ]; then
	generate && with_generated_part >"$work/manual" || exit 1
	cp "$work/sample" "$sample" && cp "$work/manual" "$manual"
	exit
fi

failed=0
n=0
check() { # NAME COMMAND...: ok when the command succeeds; what it prints becomes diagnostics
	local name=$1
	shift
	n=$((n + 1))
	if "$@" >"$work/out" 2>&1; then
		echo "ok $n - $name"
	else
		echo "not ok $n - $name"
		failed=1
	fi
	sed 's/^/# /' "$work/out"
}

manual_is_in_step() {
	[ "$(grep -c "$begin" "$manual")" = 1 ] && [ "$(grep -c "$end" "$manual")" = 1 ] || return 1
	with_generated_part | diff -u "$manual" -
}

lint_manual() {
	mandoc -Tlint -W warning "$manual"
}

echo 1..4
check "the generator runs" generate
check "conf/refreshd.yaml is the generated sample" diff -u "$sample" "$work/sample"
check "docs/refreshd.yaml.5 has the generated options" manual_is_in_step
if command -v mandoc >/dev/null; then
	check "docs/refreshd.yaml.5 is clean mdoc" lint_manual
else
	n=$((n + 1))
	echo "ok $n # SKIP mandoc is not installed"
fi
exit $failed
