#!/bin/sh
# The demo (make demo): two nodes with real keys, a stick between them, and a mailbox of difficult mails that crosses it.
# Everything lies below demo/ in the checkout, which is wiped at start. It needs no root and no network but loopback.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root"
top=demo
rm -rf $top
mkdir -p $top/bin
PATH=$root/$top/bin:$root/bin:$PATH
export PATH
ln -s ../../bin/sendmail $top/bin/mailq
go build -o $top/bin/mailbox ./contrib/demo/mailbox

if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') off=$(printf '\033[0m'); else bold= dim= off=; fi
step=0
say() { step=$((step + 1)); printf '\n%s%d. %s%s\n' "$bold" "$step" "$*" "$off"; }
tell() { printf '   %s\n' "$*"; }

# run NODE COMMAND…: shows what is typed at a node and what it answers, indented.
run() {
	node=$1
	shift
	printf '   %s%s$ %s%s\n' "$dim" "$node" "$*" "$off"
	status=0
	MOCHILA_HOME=$top/$node "$@" >$top/out 2>&1 </dev/null || status=$?
	sed -e "s|$root/||g" -e 's/^/   /' $top/out
	if [ $status -ne 0 ]; then fail "$1 ended with status $status"; fi
}

# quiet NODE COMMAND…: the same without a word, unless it fails.
quiet() {
	node=$1
	shift
	MOCHILA_HOME=$top/$node "$@" >$top/out 2>&1 </dev/null || { cat $top/out; fail "$* failed at $node"; }
}

fail() {
	printf '\nThe demo failed: %s\n' "$*" >&2
	if [ -s $top/camp.log ]; then printf 'The last lines of camp'"'"'s log (%s/camp.log):\n' $top >&2; tail -n 15 $top/camp.log >&2; fi
	exit 1
}

daemon=
stop() { if [ -n "$daemon" ]; then kill "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true; daemon=; fi; }
trap stop EXIT
trap 'exit 130' INT TERM

# check COMMAND…: shows its answer, and ends the demo if it fails.
check() {
	"$@" >$top/out 2>&1 </dev/null || { cat $top/out; fail "$*"; }
	sed 's/^/   = /' $top/out
}

name() { basename "$1" | cut -c 1-12; }

# walk FROM TO: somebody pulls the stick out at one node, and plugs it in at another.
walk() { mv $top/$1/usb $top/$2/usb; }

say "Two nodes are made, each with its own keys"
port=$(mailbox port)
quiet camp mochila init camp --domain camp.example --maildir $top/camp/mail --listen 127.0.0.1:$port
quiet hub mochila init hub --domain hub.example --maildir $top/hub/mail
tell "camp has a mail server on 127.0.0.1:$port. hub has no daemon, and no network at all."
# hub knows these people, and nobody else
people='"bo@hub.example", "carla@hub.example", "jörg@hub.example", "o'"'"'neil+git@hub.example", "\\"the hut\\"@hub.example"'
sed "s|^to = .*|to = [$people]|" $top/hub/mochila.toml >$top/toml
cat $top/toml >$top/hub/mochila.toml

say "A stick goes from camp to hub and back: now they know each other"
mkdir $top/camp/usb
run camp mochila invite hub $top/camp/usb
walk camp hub
run hub mochila join $top/hub/usb --as camp
walk hub camp
run camp mochila sync $top/camp/usb
cat >>$top/camp/mochila.toml <<END

[[route]]
to = ["hub.example"]
node = "hub"
END
tell "And camp has a rule now: mail for hub.example goes to hub."
quiet camp mochila check
quiet hub mochila check
mv $top/camp/usb $top/pocket

say "camp takes a mailbox of difficult mails. Nobody is connected to anybody"
MOCHILA_HOME=$top/camp mochila serve 2>$top/camp.log &
daemon=$!
mailbox wait 127.0.0.1:$port || fail "camp's daemon does not answer"
check env MOCHILA_HOME=$top/camp mailbox feed -smtp 127.0.0.1:$port -sent $top/sent
printf 'From: ana@camp.example\nTo: nobody@hub.example\nSubject: are you there?\n\nHello?\n' |
	MOCHILA_HOME=$top/camp sendmail -f ana@camp.example nobody@hub.example || fail "sendmail refused a mail"
tell "And one for nobody@hub.example, whom hub does not know."

say "It waits on camp's disk"
MOCHILA_HOME=$top/camp mailq >$top/queue || fail "mailq failed"
tell "${dim}camp\$ mailq$off"
head -n 7 $top/queue | cut -c 1-110 | sed 's/^/   /'
tell "…"
tail -n 1 $top/queue | sed 's/^/   /'

say "The stick is plugged in at camp, and copied to an older one, which loses the end of a packet"
mv $top/pocket $top/camp/usb
run camp mochila sync $top/camp/usb
cp -r $top/camp/usb $top/hub/usb
packets=$(find $top/hub/usb -type f ! -name '*.*' -exec ls -S {} +)
victim=$(printf '%s\n' "$packets" | sed -n 1p)
other=$(printf '%s\n' "$packets" | sed -n 2p)
size=$(wc -c <"$victim")
head -c $((size / 2)) "$victim" >$top/half
cat $top/half >"$victim"
cp "$other" "$other (copy)"
tell "$(name "$victim"): $((size / 2)) of $size bytes are left. $(name "$other"): there twice."

say "hub reads the older stick: what is whole is delivered, what is not can wait"
run hub mochila sync $top/hub/usb
check mailbox compare -sent $top/sent -maildir $top/hub/mail -missing 1
mv $top/hub/usb $top/old-stick

say "The good stick arrives with the next trip, and has everything once more"
walk camp hub
run hub mochila sync $top/hub/usb
check mailbox compare -sent $top/sent -maildir $top/hub/mail

say "It comes home with receipts, and with the answer for nobody@hub.example"
walk hub camp
run camp mochila sync $top/camp/usb
check mailbox report -maildir $top/camp/mail nobody@hub.example
run camp mailq

say "Three jobs for hub, one trip each. They arrive as 3, 1, 2, and run as 1, 2, 3"
cat >>$top/hub/mochila.toml <<END

[[handler]]
name = "count"
command = ["/bin/sh", "-c", "read line; echo \"\$MOCHILA_SEQ \$line\" >>ran; echo \"number \$MOCHILA_SEQ ran as job \$(wc -l <ran)\""]
allow = ["camp:demo"]
dir = "."
END
tell "hub lets camp's channel \"demo\" run one program, by the name of count."
mkdir -p $top/pouch
for n in 1 2 3; do
	find $top/camp/usb -type f >$top/before
	printf 'job %s\n' $n | MOCHILA_HOME=$top/camp mochila run hub --channel demo -- count >$top/out || fail "run"
	sed -e "s/^/   ${dim}camp\$ echo job $n | mochila run hub --channel demo -- count$off   /" $top/out
	quiet camp mochila sync $top/camp/usb
	mkdir $top/pouch/$n
	find $top/camp/usb -type f | grep -vxF -f $top/before | while read -r f; do # this trip's packets, in an envelope of their own
		to=$top/pouch/$n/${f#$top/camp/usb/}
		mkdir -p "$(dirname "$to")"
		cp "$f" "$to"
	done
done
for n in 3 1 2; do
	mkdir -p $top/hub/usb
	cp -r $top/pouch/$n/. $top/hub/usb/
	quiet hub mochila sync $top/hub/usb
	tell "number $n arrives; run so far: $(cut -d ' ' -f 1 $top/hub/ran 2>/dev/null | tr '\n' ' ')"
done
[ "$(cat $top/hub/ran)" = "1 job 1
2 job 2
3 job 3" ] || fail "the jobs ran in another order: $(cat $top/hub/ran)"
run hub mochila jobs list --channels
tell "The results travel back to camp:"
cp -r $top/hub/usb/. $top/camp/usb/
quiet camp mochila sync $top/camp/usb
MOCHILA_HOME=$top/camp mochila jobs list --ended --channel demo --json >$top/ended || fail "jobs list"
for id in $(sed -n 's/.*"id":"\([0-9A-V]*\)".*/\1/p' $top/ended); do
	run camp mochila jobs show "$id" --stdout
done
[ "$(grep -c '"state":"done","exit":0' $top/ended)" = 3 ] || fail "not every result has come back"

say "The life of one mail"
id=$(sed -n 's/^\([0-9A-Z]\{20,\}\).*/\1/p' $top/queue | head -n 1)
run camp mochila trace "$id"

stop
cat <<END

${bold}All is well.${off} Both nodes are still there, in demo/camp and demo/hub. Try next:

   export PATH=\$PWD/bin:\$PATH
   echo "Greetings" | sendmail --home demo/camp bo@hub.example       # camp writes to hub
   mochila --home demo/camp sync demo/camp/usb                      # … on the stick …
   mv demo/camp/usb demo/hub/usb                                    # … which is carried …
   mochila --home demo/hub sync demo/hub/usb; ls demo/hub/mail/bo/new | tail -n 1

   mochila --home demo/camp status
   mochila --home demo/camp route test bo@hub.example
   mochila --home demo/camp serve                                   # SMTP on 127.0.0.1:$port again
END
