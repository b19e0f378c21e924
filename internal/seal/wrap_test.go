package seal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mochila/internal/durable"
	"mochila/internal/envelope"
)

func TestWrap(t *testing.T) {
	k := newNode(t, "camp")
	b := k.Wrap([]byte("secret"))
	if got, err := k.Unwrap(b); err != nil || string(got) != "secret" {
		t.Fatalf("%q, %v", got, err)
	}
	if bytes.Contains(b, []byte("secret")) || bytes.Equal(b, k.Wrap([]byte("secret"))) {
		t.Error("wrapped in clear, or twice alike")
	}
	for n := range b {
		b[n] ^= 0x40
		if _, err := k.Unwrap(b); !errors.Is(err, envelope.ErrFormat) && !errors.Is(err, ErrWrapped) && !errors.Is(err, ErrCorrupt) {
			t.Errorf("byte %d changed: %v", n, err)
		}
		b[n] ^= 0x40
	}
	for n := range b {
		if _, err := k.Unwrap(b[:n]); err == nil {
			t.Errorf("cut to %d and accepted", n)
		}
	}
}

// After a rotation nothing opens what was wrapped before and not converted.
func TestRotateWrap(t *testing.T) {
	k := newNode(t, "camp")
	if _, err := k.NewIncarnation(start); err != nil {
		t.Fatal(err)
	}
	kept, deleted := k.Wrap([]byte("kept")), k.Wrap([]byte("deleted"))
	before, err := os.ReadFile(filepath.Join(k.dir, fileWrap))
	if err != nil {
		t.Fatal(err)
	}
	oldKey := k.wrapCur.key
	inode, err := os.Open(filepath.Join(k.dir, fileWrap)) // what a thief finds in the old blocks
	if err != nil {
		t.Fatal(err)
	}
	defer inode.Close()
	err = k.RotateWrap(start.Add(day), func(convert func([]byte) ([]byte, error)) error {
		kept, err = convert(kept)
		if err != nil {
			return err
		}
		again, err := convert(kept) // a transaction may be run twice
		if err != nil || !bytes.Equal(again, kept) {
			t.Errorf("converted twice: %v", err)
		}
		_, err = convert([]byte("nonsense"))
		wantErr(t, "nonsense", err, envelope.ErrFormat)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if k.WrapPending() || !k.WrapMade().Equal(start.Add(day)) {
		t.Errorf("pending %v, made %v", k.WrapPending(), k.WrapMade())
	}
	left := make([]byte, len(before))
	if _, err := inode.ReadAt(left, 0); err != nil || bytes.Contains(left, oldKey[:]) {
		t.Errorf("the old key was not overwritten, %v", err)
	}
	for _, k := range []*Keyring{k, reopen(t, k)} {
		if got, err := k.Unwrap(kept); err != nil || string(got) != "kept" {
			t.Errorf("%q, %v", got, err)
		}
		_, err = k.Unwrap(deleted)
		wantErr(t, "what was not converted", err, ErrWrapped)
		for _, key := range k.Keys() {
			if key.Erased() {
				t.Error("a sealing key was lost")
			}
		}
	}
}

// Whatever step of a rotation fails, everything stays readable, also after a restart, and the next rotation ends it.
func TestRotateWrapInterrupted(t *testing.T) {
	steps := 0
	for ; ; steps++ {
		k := newNode(t, "camp")
		fsys := &failing{FS: durable.OS{}, after: steps}
		k.fs = fsys
		secret := k.Wrap([]byte("secret"))
		rotate := func(k *Keyring) error {
			return k.RotateWrap(start.Add(day), func(convert func([]byte) ([]byte, error)) error {
				if x, ok := k.fs.(*failing); ok {
					if err := x.step(); err != nil {
						return err
					}
				}
				b, err := convert(secret)
				if err == nil {
					secret = b
				}
				return err
			})
		}
		err := rotate(k)
		if err != nil && !errors.Is(err, errPower) {
			t.Fatalf("after %d steps: %v", steps, err)
		}
		done := err == nil
		if got, err := k.Unwrap(secret); err != nil || string(got) != "secret" {
			t.Fatalf("after %d steps, still running: %q, %v", steps, got, err)
		}
		if steps%2 == 0 { // the daemon goes on: half of the time without restart
			fsys.after = 1 << 30
			if err := rotate(k); err != nil {
				t.Fatalf("after %d steps, again: %v", steps, err)
			}
		}
		k = reopen(t, k)
		if got, err := k.Unwrap(secret); err != nil || string(got) != "secret" {
			t.Fatalf("after %d steps and a restart: %q, %v", steps, got, err)
		}
		if k.last().Erased() {
			t.Fatalf("after %d steps: the sealing key is lost", steps)
		}
		if err := rotate(k); err != nil {
			t.Fatalf("after %d steps and a restart, again: %v", steps, err)
		}
		k = reopen(t, k)
		if got, err := k.Unwrap(secret); err != nil || string(got) != "secret" || k.WrapPending() {
			t.Fatalf("after %d steps, at the end: %q, %v, pending %v", steps, got, err, k.WrapPending())
		}
		if done {
			break
		}
	}
	if steps < 15 {
		t.Errorf("only %d steps were tried", steps)
	}
}

// A rotation whose callback fails is taken up again, also for secrets wrapped meanwhile.
func TestRotateWrapPending(t *testing.T) {
	k := newNode(t, "camp")
	first := k.Wrap([]byte("first"))
	refuse := errors.New("disk full")
	wantErr(t, "failing transaction", k.RotateWrap(start, func(func([]byte) ([]byte, error)) error { return refuse }), refuse)
	second := k.Wrap([]byte("second"))
	k = reopen(t, k)
	if !k.WrapPending() {
		t.Error("the rotation is not pending")
	}
	if err := k.RotateWrap(start.Add(time.Hour), func(convert func([]byte) ([]byte, error)) (err error) {
		if first, err = convert(first); err != nil {
			return err
		}
		second, err = convert(second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for want, b := range map[string][]byte{"first": first, "second": second} {
		if got, err := k.Unwrap(b); err != nil || string(got) != want {
			t.Errorf("%q, %v", got, err)
		}
	}
}
