#!/bin/bash
# totals.sh BUILDDIR [STATUS] - sums up the last "make check" of BUILDDIR over every single TAP result.
#
# Shows what failed with the tail of its log; its last line is "N passed, N failed". A skip counts as failed unless it is expected:
# only a test that needs root, run by somebody else, may be skipped. STATUS is what make returned: a make that failed
# although no result did (it did not compile, a test went missing) counts as one failure. Exit 0 when nothing failed.
set -u
builddir=${1:?BUILDDIR}
status=${2:-0}
tail_lines=60

mapfile -t results < <(find "$builddir/tests" -name '*.trs' -type f 2>/dev/null | sort)
passed=0
failed=0

show() { # LOG: its failures first, they may be far above the tail
	grep -E '^(FAIL|ERROR|XPASS|not ok|SKIP)|# SKIP' "$1" | head -n 20 | sed 's/^/    /'
	echo "    ... the last lines of $1:"
	tail -n "$tail_lines" "$1" | sed 's/^/    /'
}

unexpected_skips() { # LOG
	if [ "$(id -u)" = 0 ]; then
		grep -c '^SKIP: ' "$1"
	else
		grep '^SKIP: ' "$1" | grep -vc '# SKIP needs root\|- needs root'
	fi
}

for trs in ${results[@]+"${results[@]}"}; do
	log=${trs%.trs}.log
	good=$(grep -cE '^:test-result: (PASS|XFAIL)' "$trs")
	bad=$(grep -cE '^:test-result: (FAIL|XPASS|ERROR)' "$trs")
	skips=$(unexpected_skips "$log")
	if [ $((good + bad + skips)) = 0 ] && ! grep -q '^:test-result: SKIP' "$trs"; then
		bad=1 # a test that reports nothing has not passed
	fi
	passed=$((passed + good))
	failed=$((failed + bad + skips))
	if [ $((bad + skips)) -gt 0 ]; then
		echo "FAILED: ${trs#"$builddir"/}: $bad failed, $skips skipped"
		show "$log"
	fi
done

if [ "$status" -ne 0 ] && [ "$failed" = 0 ]; then
	echo "FAILED: make check ended with status $status and no test says why: see its output above"
	failed=1
fi
if [ "$((passed + failed))" = 0 ]; then
	echo "FAILED: no test ran in $builddir"
	failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
