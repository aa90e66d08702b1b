#!/bin/bash
# The unit file under a real service manager: a systemd of its own, as PID 1 of private namespaces over a throwaway overlay of /,
# with a Postgres and the provider simulator as services beside refreshd. Nothing outside of its namespaces and its own control group
# changes. Needs root.
#
# The database roles are made by the very statements that docs/operating.md tells people to run.
# shellcheck disable=SC2016 # words for another shell, and for awk
set -u
src=$(realpath "${TOP_SRCDIR:-.}")
build=$(realpath "${TOP_BUILDDIR:-.}")
if [ "$(id -u)" != 0 ]; then
	echo "1..0 # SKIP needs root: it boots a systemd in namespaces of its own"
	exit 0
fi

state=$(mktemp -d /tmp/refreshd-systemd.XXXXXX)
name=${state##*/}
init_pid=
n=0
failed=0

clean_up() {
	[ -z "$init_pid" ] || kill -KILL "$init_pid" 2>/dev/null
	[ -z "${unshare_pid:-}" ] || wait "$unshare_pid" 2>/dev/null
	# The group goes when its last process has gone; the kernel takes a moment.
	for _ in $(seq 50); do
		find "$state/cg/$name" -depth -type d -exec rmdir {} + 2>/dev/null
		[ -d "$state/cg/$name" ] || break
		sleep 0.1
	done
	umount "$state/cg" 2>/dev/null
	rm -rf "$state"
}
trap clean_up EXIT

ok() { # NAME STATUS
	n=$((n + 1))
	if [ "$2" = 0 ]; then
		echo "ok $n - $1"
	else
		echo "not ok $n - $1"
		failed=1
		[ -z "$init_pid" ] || inside journalctl -b --no-pager -n 40 -u refreshd -u sdtest-postgres -u sdtest-simulator 2>&1 | sed 's/^/# /'
	fi
}

bail() {
	echo "Bail out! $*"
	exit 1
}

inside() {
	nsenter -t "$init_pid" -a -r -w "$@"
}

ctl() {
	inside env CREDENTIALS_DIRECTORY=/etc/refreshd/secrets /opt/sdtest/refreshctl -c /etc/refreshd/refreshd.yaml "$@"
}

sim() { # PATH [CURL OPTION...]
	local path=$1
	shift
	inside curl -fsS "$@" "http://127.0.0.1:8081$path"
}

property() {
	inside systemctl show -P "$1" refreshd
}

sql() {
	inside setpriv --reuid=postgres --regid=postgres --clear-groups psql -XqAt -v ON_ERROR_STOP=1 -h /run/postgresql "$@"
}

wait_for() { # SECONDS COMMAND...: until it succeeds
	local end=$((SECONDS + $1))
	shift
	until "$@" 2>/dev/null; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.05
	done
}

is() { # EXPECTED COMMAND...
	local expected=$1
	shift
	[ "$("$@" 2>/dev/null)" = "$expected" ]
}

# ---------------------------------------------------------------- what goes into the machine

write_units() {
	local pg
	pg=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
	[ -n "$pg" ] || bail "no PostgreSQL server programs"
	mkdir -p "$state/units/refreshd.service.d" "$state/payload" "$state/etc/secrets"
	cp "$build/refreshd" "$build/refreshctl" "$build/tests/provider/simulator" "$state/payload/" || bail "not built"
	sed -E -e 's,^(Exec[A-Za-z]+=)[^ ]*/refreshd ,\1/opt/sdtest/refreshd ,' -e 's, -c [^ ]*/refreshd.yaml, -c /etc/refreshd/refreshd.yaml,' \
		"$build/systemd/refreshd.service" >"$state/units/refreshd.service"
	cat >"$state/units/sdtest.target" <<-X
		[Unit]
		Description=A machine for one test
		Requires=basic.target
		After=basic.target
		AllowIsolate=yes
	X
	cat >"$state/units/sdtest-postgres.service" <<-X
		[Service]
		Type=notify
		User=postgres
		RuntimeDirectory=postgresql
		StateDirectory=sdtest-postgres
		ExecStartPre=$pg/initdb -D /var/lib/sdtest-postgres/data -U postgres -A trust -E UTF8 --locale=C --no-sync
		ExecStart=$pg/postgres -D /var/lib/sdtest-postgres/data -k /run/postgresql -c listen_addresses= -c fsync=off
	X
	cat >"$state/units/sdtest-simulator.service" <<-X
		[Service]
		ExecStart=/opt/sdtest/simulator --listen 127.0.0.1:8081 --realm acme:mode=strict
	X
	# The watchdog of the unit, only sooner.
	cat >"$state/units/refreshd.service.d/test.conf" <<-X
		[Service]
		LoadCredential=keyring:/etc/refreshd/secrets/keyring
		LoadCredential=acme:/etc/refreshd/secrets/acme
		WatchdogSec=4
	X
}

write_config() {
	printf 'k1 %s\n' "$(openssl rand -base64 32)" >"$state/etc/secrets/keyring"
	printf 'secret\n' >"$state/etc/secrets/acme"
	chmod 700 "$state/etc/secrets"
	chmod 600 "$state/etc/secrets/"*
	cat >"$state/etc/refreshd.yaml" <<-X
		state_dir: /var/lib/refreshd
		insecure_http: loopback
		database: {url: "postgresql://refreshd@/refreshd?host=/run/postgresql"}
		keyring_file: \${CREDENTIALS_DIRECTORY}/keyring
		metrics: {listen: 127.0.0.1:9464}
		refresh: {poll_interval: 500ms}
		providers:
		  acme:
		    unified_apis: [accounting]
		    token_url: http://127.0.0.1:8081/acme/token
		    rotation: strict
		clients:
		  - {application: "*", provider: acme, client_id: client, client_secret_file: "\${CREDENTIALS_DIRECTORY}/acme"}
	X
}

write_init() {
	cat >"$state/init" <<-X
		#!/bin/bash
		set -e
		cd "$state"
		mount -t tmpfs -o mode=755 tmpfs over
		mkdir over/up over/work over/root
		mount -t overlay overlay -o lowerdir=/,upperdir=over/up,workdir=over/work over/root
		cd over/root
		mkdir -p run proc sys dev
		mount -t tmpfs -o mode=755 tmpfs run
		mount -t proc proc proc
		mount -t sysfs -o ro sysfs sys
		mount -t cgroup2 cgroup2 sys/fs/cgroup
		mount -t tmpfs -o mode=1777 tmpfs tmp
		mount -t tmpfs -o mode=755 tmpfs dev
		for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
			set -- \$node
			mknod -m 666 dev/\$1 c \$2 \$3
		done
		mkdir dev/pts dev/shm
		mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
		ln -s pts/ptmx dev/ptmx
		mount -t tmpfs -o mode=1777 tmpfs dev/shm
		ln -s /proc/self/fd dev/fd
		rm -f etc/machine-id
		tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
		mkdir -p opt/sdtest etc/refreshd etc/systemd/system .old
		cp -r "$state/units/." etc/systemd/system/
		cp "$state/payload/"* opt/sdtest/
		cp -r "$state/etc/." etc/refreshd/
		# In a chroot, pivot_root and user namespaces are refused: entering our own mount namespace leads to its real root.
		exec nsenter --mount=proc/self/ns/mnt --wd=. bash -c '
			set -e
			pivot_root . .old
			cd /
			umount -l /.old
			# In a container PID 1 leaves this to us, and LoadCredential needs it.
			mount --make-rshared /
			exec env -i container=refreshd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system \\
				--unit=sdtest.target --log-target=journal --log-level=info --show-status=0'
	X
}

# ---------------------------------------------------------------- boot

find_init() {
	init_pid=$(tr -d ' ' <"/proc/$unshare_pid/task/$unshare_pid/children")
	[ -n "$init_pid" ] && [ "$(cat "/proc/$init_pid/comm")" = systemd ] && inside systemctl is-active -q sdtest.target
}

boot() {
	mkdir -p "$state/cg" "$state/over"
	mount -t cgroup2 cgroup2 "$state/cg" || return 1
	mkdir "$state/cg/$name" || return 1
	(
		echo "$BASHPID" >"$state/cg/$name/cgroup.procs"
		exec setsid unshare --propagation unchanged -m bash -c 'mount --make-rprivate / 2>/dev/null || true
			exec unshare --propagation unchanged -p -f -i -u -n -C --kill-child bash "$1"' sh "$state/init"
	) >"$state/console" 2>&1 </dev/null &
	unshare_pid=$!
	wait_for 30 find_init || { sed 's/^/# /' "$state/console"; return 1; }
}

write_units
write_config
write_init
boot
ok "systemd boots" $?
[ "$failed" = 0 ] || bail "no systemd to test under"

# ---------------------------------------------------------------- roles and tables, as the manual says

roles_sql() { # what docs/operating.md shows, before or after the first migrate
	sed -n '/^    CREATE ROLE refreshd_owner/,/^$/p' "$src/docs/operating.md" | sed 's/^    //' |
		sed -n "$1"
}

database() {
	inside systemctl start sdtest-postgres || return 1
	roles_sql '/^CREATE/p' | sql -d postgres -f - || return 1
	inside sed -i 's/refreshd@/refreshd_owner@/' /etc/refreshd/refreshd.yaml
	ctl migrate || return 1
	inside sed -i 's/refreshd_owner@/refreshd@/' /etc/refreshd/refreshd.yaml
	roles_sql '/^GRANT\|^REVOKE/p' | sql -d refreshd -U refreshd_owner -f -
}
database >"$state/out" 2>&1
ok "the documented roles, and refreshctl migrate as the owner" $?
sed 's/^/# /' "$state/out"

inside systemctl start sdtest-simulator
wait_for 10 sim /_sim/stats -o /dev/null
ok "the simulator answers" $?

# ---------------------------------------------------------------- READY, credentials, state

inside systemctl start refreshd
ok "systemctl start returns when it is ready" $?
[ "$failed" = 0 ] || bail "the service does not start"
is active property ActiveState && is running property StatusText && [ "$(inside curl -s http://127.0.0.1:9464/readyz)" = ready ]
ok "it is active, says running, and /readyz agrees" $?

first_pid=$(property MainPID)
uid=$(inside stat -c %u "/proc/$first_pid")
[ "$uid" != 0 ] && inside test -d "/proc/$first_pid" && ! inside setpriv --reuid="$uid" --regid="$uid" --clear-groups cat /etc/refreshd/secrets/keyring >/dev/null 2>&1
ok "it runs under a dynamic account that cannot read the secrets' files: they came as credentials" $?
is "700 $uid" inside stat -L -c '%a %u' /var/lib/refreshd && inside test -d /var/lib/private/refreshd/journal
ok "the state directory is its own, 0700, and holds the journal" $?
limit() { # NAME: soft and hard
	inside sed -n "s/^Max $1  *\\([0-9a-z]*\\)  *\\([0-9a-z]*\\) .*/\\1 \\2/p" "/proc/$first_pid/limits"
}
# This machine's own hard limit may be below what the unit asks for.
is "0 0" limit "core file size" && [ "$(limit "open files" | tr ' ' '\n' | uniq | wc -l)" = 1 ]
ok "no core files, and as many open files as it may have" $?

mint() { # a connection that is due now, imported
	sim "/_sim/mint?realm=acme&n=1&format=import&expires_in=1800&issued_ago=3600" -X POST | ctl import --create-apps -
}
refreshed() {
	sql -d refreshd -c "SELECT count(*) FROM refreshd.credential WHERE refreshes > 0"
}
mint >"$state/out" 2>&1 && wait_for 20 is 1 refreshed
ok "with the rights that the manual grants, it refreshes a token" $?
sed 's/^/# /' "$state/out"

# ---------------------------------------------------------------- reload

reloads() { # OUTCOME
	inside curl -s http://127.0.0.1:9464/metrics | sed -n "s/^refreshd_config_reloads_total{outcome=\"$1\"} //p"
}
inside sed -i 's/^insecure_http/insecure_htpt/' /etc/refreshd/refreshd.yaml
inside systemctl reload refreshd && wait_for 10 is 1 reloads refused
ok "a reload with a bad configuration is refused" $?
wait_for 10 is active property ActiveState && is "$first_pid" property MainPID && is 0 reloads applied &&
	inside journalctl -b --no-pager -u refreshd | grep -q 'refreshd.yaml:2:1.*insecure_htpt'
ok "the daemon says what is wrong and goes on with the old one" $?
inside sed -i 's/^insecure_htpt/insecure_http/' /etc/refreshd/refreshd.yaml
inside systemctl reload refreshd && wait_for 10 is 1 reloads applied && wait_for 10 is active property ActiveState && is "$first_pid" property MainPID
ok "a good one is taken over" $?

# ---------------------------------------------------------------- watchdog

restarted() {
	is active property ActiveState && [ "$(property MainPID)" != "$first_pid" ] && is 1 property NRestarts
}
[ "$first_pid" -gt 1 ] || bail "no process to stop"
inside kill -STOP "$first_pid"
wait_for 60 restarted
ok "a daemon that hangs is killed by the watchdog and started again" $?
inside journalctl -b --no-pager -u refreshd | grep -q -i 'watchdog timeout'
ok "and it was the watchdog" $?

# ---------------------------------------------------------------- drain

in_flight() {
	sim "/_sim/stats?realm=acme" | grep -qE '"in_flight": ?1[,}]'
}
sim "/_sim/realm?name=acme&delay_ms=3000" -X POST >/dev/null
mint >"$state/out" 2>&1 && wait_for 20 in_flight
ok "a request is out" $?
inside systemctl stop refreshd
ok "systemctl stop succeeds while it is" $?
is 0 property ExecMainStatus && is success property Result
ok "it drained and exited 0" $?
is 2 refreshed
ok "the answer that was awaited is committed" $?
is 0 sql -d refreshd -c "SELECT count(*) FROM refreshd.schedule WHERE lease_owner IS NOT NULL"
ok "and no lease is left behind" $?

echo "1..$n"
exit "$failed"
