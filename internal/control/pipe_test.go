package control

import (
	"bytes"
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"mochila/internal/envelope"
)

// TestPipePieces: pieces come in any order and twice, from the right peer or not, and beyond what is held.
func TestPipePieces(t *testing.T) {
	x := newPipes()
	id, peer, other := rand.Text(), envelope.NodeID{1}, envelope.NodeID{2}
	p, err := x.begin(id, peer)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.begin(id, peer); err == nil {
		t.Error("a pipe was opened twice")
	}
	give := func(from envelope.NodeID, data string, args ...string) int {
		t.Helper()
		a, err := parsePiece(args)
		if err != nil {
			t.Fatal(err)
		}
		code, _ := x.give(t.Context(), from, a, []byte(data))
		return code
	}
	for _, c := range []struct {
		from envelope.NodeID
		args []string
		data string
		want int
	}{
		{other, PieceArgs(id, 0, false), "forged", pieceNoPipe},
		{peer, PieceArgs(rand.Text(), 0, false), "another", pieceNoPipe},
		{peer, PieceArgs(id, 6, false), "world", pieceTaken},
		{peer, PieceArgs(id, 6, false), "world", pieceTaken},
		{peer, PieceArgs(id, 0, false), "hello ", pieceTaken},
		{peer, PieceArgs(id, 11, true), "", pieceTaken},
		{peer, PieceArgs(id, 11, false), "more", pieceBad},
		{peer, PieceArgs(id, 3, true), "", pieceBad},
		{peer, PieceArgs(id, 0, false), "hello ", pieceTaken},
	} {
		if got := give(c.from, c.data, c.args...); got != c.want {
			t.Errorf("piece %q of %q: status %d, want %d", c.args, c.data, got, c.want)
		}
	}
	var got bytes.Buffer
	for {
		b, how, err := x.take(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if how != "" {
			if how != PipeEnd {
				t.Errorf("it ended as %q", how)
			}
			break
		}
		got.Write(b)
	}
	if got.String() != "hello world" {
		t.Errorf("got %q", got.String())
	}
	x.finish(id)
	if code := give(peer, "late", PieceArgs(id, 11, false)...); code != pieceNoPipe {
		t.Errorf("a piece for a pipe that is closed: status %d", code)
	}
}

// TestPipeRoom: a program that takes nothing holds up nobody and no memory; the next byte always finds room.
func TestPipeRoom(t *testing.T) {
	x := newPipes()
	id, peer := rand.Text(), envelope.NodeID{1}
	p, err := x.begin(id, peer)
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	block := bytes.Repeat([]byte("x"), MaxPiece)
	for i := range int64(maxHeld / MaxPiece) {
		if code, why := x.give(t.Context(), peer, piece{id: id, offset: (i + 1) * MaxPiece}, block); code != pieceTaken {
			t.Fatalf("piece %d: %d %s", i, code, why)
		}
	}
	if code, _ := x.give(soon, peer, piece{id: id, offset: 100 * MaxPiece}, block); code != pieceNoRoom {
		t.Errorf("beyond the room: status %d", code)
	}
	if code, _ := x.give(soon, peer, piece{id: id}, block); code != pieceTaken {
		t.Errorf("the next piece: status %d", code)
	}
	if p.size > maxHeld+MaxPiece {
		t.Errorf("%d bytes are held", p.size)
	}
	// Who goes says so, after what came before.
	if code, _ := x.give(t.Context(), peer, piece{id: id, gone: true}, nil); code != pieceTaken {
		t.Error("not taken")
	}
	n := 0
	for {
		b, how, err := x.take(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if n += len(b); how != "" {
			if how != PipeGone {
				t.Errorf("it ended as %q", how)
			}
			break
		}
	}
	if want := maxHeld + MaxPiece; n != want {
		t.Errorf("%d bytes were taken, want %d", n, want)
	}
}

// TestPieceArguments: what is no piece is refused before anything else happens.
func TestPieceArguments(t *testing.T) {
	id := rand.Text()
	for _, args := range [][]string{nil, {id}, {id, "x"}, {id, "-1"}, {id, "99999999999999999999"}, {id, "0", "gone"}, {id, "0", "end", "end"}, {strings.ToLower(id), "0"}, {id + "A", "0"}, {"../" + id[3:], "0"}} {
		if p, err := parsePiece(args); err == nil {
			t.Errorf("%q is taken for %+v", args, p)
		}
	}
	if p, err := parsePiece(PieceArgs(id, 7, true)); err != nil || p != (piece{id: id, offset: 7, end: true}) {
		t.Errorf("got %+v, %v", p, err)
	}
}
