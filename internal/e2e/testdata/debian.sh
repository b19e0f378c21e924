#!/bin/bash
# debian.sh DIR MOCHILA.deb MOCHILA-MTA.deb: what an administrator does with the packages, in a mount name space. DIR is
# a scratch folder.
set -eu
dir=$1 daemon=$2 mta=$3
mount --make-rprivate /
for d in usr etc var; do
	mkdir "$dir/$d" "$dir/$d.work"
	mount -t overlay overlay -o "lowerdir=/$d,upperdir=$dir/$d,workdir=$dir/$d.work" "/$d"
done
mount -t tmpfs -o mode=755 none /run
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d # no service is touched
chmod 755 /usr/sbin/policy-rc.d
rm -rf /etc/mochila /var/lib/mochila /var/spool/mochila
unset MOCHILA_HOME

fail() { echo "FAILED: $*"; exit 1; }
wait_for() { # what, command...
	local what=$1 i
	shift
	for ((i = 0; i < 600; i++)); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	fail "waited a minute in vain for $what"
}
count() { [ "$(find "$1" -type f -path '*/new/*' 2>/dev/null | wc -l)" = "$2" ]; }
nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups env -i "$@"; }

export DEBIAN_FRONTEND=noninteractive
rm -f /var/lib/man-db/auto-update # no index of man pages
# as apt does it: the other mail server first
others=$(dpkg-query -W -f '${db:Status-Status} ${Package} ${Provides}\n' | awk '$1 == "installed" && / mail-transport-agent/ { print $2 }')
if [ -n "$others" ]; then dpkg --remove --force-depends $others 2>&1 | tail -5; fi
dpkg -i "$daemon" "$mta" 2>&1 | tail -15
dpkg-query -W -f '${Package} ${db:Status-Status}\n' mochila mochila-mta
[ "$(readlink -f /usr/sbin/sendmail)" = /usr/lib/mochila/sendmail ] || fail "sendmail is not ours"

cd /
mochila init camp --maildir /var/lib/mochila/mail | head -3
owner=$(stat -c %U /var/lib/mochila/identity)
[ "$owner" = mochila ] || fail "the identity belongs to $owner"
mochila check

install -d -o mochila -g mochila /run/mochila # as RuntimeDirectory= does
start() {
	setpriv --reuid mochila --regid mochila --init-groups env -i PATH=/usr/bin:/bin HOME=/var/lib/mochila sh -c 'umask 027; exec /usr/bin/mochila serve' &
	pid=$!
	wait_for "the control socket" test -S /run/mochila/control.sock
}
start

echo "Subject: by an ordinary user" | nobody /usr/sbin/sendmail ana@camp.mochila
wait_for "a mail of an ordinary user" count /var/lib/mochila/mail/ana 1
mailq
mochila status | head -5

kill $pid
wait $pid || fail "the daemon ended with $?"
echo "Subject: while the daemon is down" | nobody /usr/sbin/sendmail ana@camp.mochila
count /var/lib/mochila/mail/ana 1 || fail "who delivered that?"
mochila sync # root goes on as mochila
wait_for "the mail of the time without daemon" count /var/lib/mochila/mail/ana 2
foreign=$(find /var/lib/mochila /var/spool/mochila ! -user mochila)
[ -z "$foreign" ] || fail "not mochila's: $foreign"
start
echo "Subject: again" | nobody /usr/sbin/sendmail ana@camp.mochila
wait_for "a mail after the restart" count /var/lib/mochila/mail/ana 3
kill $pid
wait $pid || fail "the daemon ended with $?"

if command -v systemd-analyze >/dev/null; then
	systemd-analyze verify /usr/lib/systemd/system/mochila.service || fail "the unit"
fi
bash -c 'source /usr/share/bash-completion/completions/mochila' || fail "the completion"

# a newer one on top keeps everything, a removal leaves keys and queue
dpkg -i "$daemon" >/dev/null
dpkg -P --force-depends mochila-mta mochila 2>&1 | tail -4
[ ! -e /usr/bin/mochila ] || fail "the program is still there"
[ ! -e /usr/sbin/sendmail ] || fail "sendmail is still there"
[ -e /var/lib/mochila/identity/id.key ] || fail "the key is gone with the package"
echo "all is well"
