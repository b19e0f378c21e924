package peertest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// StartSyncthing starts an instance of Syncthing for each folder; they keep the folders the same, over loopback only:
// no discovery, no relays, no reports home. The test is skipped where Syncthing is not installed.
func StartSyncthing(t testing.TB, folders ...string) {
	t.Helper()
	version, err := exec.Command("syncthing", "--version").Output()
	if err != nil {
		t.Skipf("SKIPPED: Syncthing is not installed (%v): run .ci/peers", err)
	}
	t.Logf("neighbour: %.60s", version)
	type device struct{ home, id, addr string }
	var all []device
	for range folders {
		d := device{home: t.TempDir(), addr: FreePort(t)}
		if out, err := syncthing("generate", "--no-default-folder", "--skip-port-probing", "--home", d.home).CombinedOutput(); err != nil {
			t.Fatalf("syncthing generate: %v: %s", err, out)
		}
		id, err := syncthing("--home", d.home, "--device-id").Output()
		if err != nil {
			t.Fatalf("syncthing --device-id: %v", err)
		}
		d.id = strings.TrimSpace(string(id))
		all = append(all, d)
	}
	for i, d := range all {
		var list, members strings.Builder
		for _, x := range all {
			fmt.Fprintf(&list, "<device id=%q name=\"d\" compression=\"never\"><address>tcp://%s</address></device>\n", x.id, x.addr)
			fmt.Fprintf(&members, "<device id=%q></device>\n", x.id)
		}
		conf := fmt.Sprintf(`<configuration version="35">
<folder id="mochila" label="mochila" path=%q type="sendreceive" rescanIntervalS="10" fsWatcherEnabled="true" fsWatcherDelayS="1">
<minDiskFree unit="%%">0</minDiskFree>
%s</folder>
%s<gui enabled="true" tls="false"><address>%s</address><apikey>test</apikey></gui>
<options>
<listenAddress>tcp://%s</listenAddress>
<globalAnnounceEnabled>false</globalAnnounceEnabled>
<localAnnounceEnabled>false</localAnnounceEnabled>
<relaysEnabled>false</relaysEnabled>
<natEnabled>false</natEnabled>
<reconnectionIntervalS>1</reconnectionIntervalS>
<urAccepted>-1</urAccepted>
<autoUpgradeIntervalH>0</autoUpgradeIntervalH>
<crashReportingEnabled>false</crashReportingEnabled>
<minHomeDiskFree unit="%%">0</minHomeDiskFree>
<startBrowser>false</startBrowser>
<stunKeepaliveStartS>0</stunKeepaliveStartS>
</options>
</configuration>
`, folders[i], members.String(), list.String(), FreePort(t), d.addr)
		if err := os.WriteFile(filepath.Join(d.home, "config.xml"), []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(folders[i], ".stfolder"), 0o755); err != nil {
			t.Fatal(err)
		}
		serveSyncthing(t, d.home)
	}
}

// syncthing is a command line of it that leaves the user's own instance alone.
func syncthing(args ...string) *exec.Cmd {
	cmd := exec.Command("syncthing", args...)
	cmd.Env = append(os.Environ(), "STNODEFAULTFOLDER=1", "STNOUPGRADE=1", "STNORESTART=1", "STMONITORED=")
	return cmd
}

func serveSyncthing(t testing.TB, home string) {
	t.Helper()
	words := &lockedBuffer{}
	cmd := syncthing("serve", "--no-browser", "--no-restart", "--no-upgrade", "--home", home)
	cmd.Stdout, cmd.Stderr = words, words
	cmd.SysProcAttr = ownGroup()
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		killGroup(cmd.Process.Pid)
		cmd.Wait()
		if t.Failed() {
			t.Logf("log of syncthing:\n%s", tail(words.String()))
		}
	})
	Await(t, "syncthing to start", func() bool { return bytes.Contains([]byte(words.String()), []byte("Ready to synchronize")) }, words.String)
}
