package bridge

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// TestOnlyTheLastGoesAgain seals a mail twice, as after a lost receipt, and loses both packets with the stick: one of
// them is written again.
func TestOnlyTheLastGoesAgain(t *testing.T) {
	stick := t.TempDir()
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, "dir:"+stick)
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: x\r\n\r\nx\r\n")
	camp.sync()
	camp.b.Tick(time.Now().Add(4 * 24 * time.Hour))
	camp.sync()
	if n := files(t, stick); n != 2 {
		t.Fatalf("%d packets on the stick, not 2", n)
	}
	list, _ := filepath.Glob(stick + "/mochila/*/*/*")
	for _, f := range list {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	camp.sync()
	if n := files(t, stick); n != 1 {
		t.Errorf("%d packets were written again, not 1", n)
	}
}

// TestFolderIsClearedWithoutReceipt removes a mail whose packet lies on a stick: the packet goes at the next look.
func TestFolderIsClearedWithoutReceipt(t *testing.T) {
	stick := t.TempDir()
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, "dir:"+stick)
	id := camp.submit("ana@camp.example", "bob@hub.example", "Subject: x\r\n\r\nx\r\n")
	camp.sync()
	x, err := envelope.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := camp.b.Act(x, Act{Verb: VerbRemove}); err != nil {
		t.Fatal(err)
	}
	camp.sync()
	if n := files(t, stick); n != 0 {
		t.Errorf("%d packets are left on the stick", n)
	}
}

// TestBundleLosesOneMail ends one of two mails that share a packet on a lost stick: the other one goes in a new packet,
// once.
func TestBundleLosesOneMail(t *testing.T) {
	stick := t.TempDir()
	camp, hub := newNode(t, "camp"), newNode(t, "hub")
	camp.knows(hub, "dir:"+stick)
	id := camp.submit("ana@camp.example", "bob@hub.example", "Subject: 1\r\n\r\nx\r\n")
	camp.submit("ana@camp.example", "bob@hub.example", "Subject: 2\r\n\r\nx\r\n")
	camp.sync()
	list, _ := filepath.Glob(stick + "/mochila/*/*/*")
	if len(list) != 1 {
		t.Fatalf("%d packets", len(list))
	}
	if err := os.Remove(list[0]); err != nil {
		t.Fatal(err)
	}
	x, err := envelope.ParseID(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := camp.b.Act(x, Act{Verb: VerbRemove}); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		camp.sync()
	}
	if n := files(t, stick); n != 1 {
		t.Errorf("%d packets on the stick, not 1", n)
	}
	hub.knows(camp, "dir:"+stick)
	hub.sync()
	hub.drain()
	if n := len(hub.box("bob")); n != 1 {
		t.Errorf("%d mails arrived, not 1", n)
	}
}
