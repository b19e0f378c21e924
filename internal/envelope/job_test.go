package envelope

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func fullJob() *Envelope {
	return &Envelope{
		ID: fixedID(4), Kind: KindJob, Created: fixedID(4).Time().UTC(), Expires: time.Unix(1785000000, 0).UTC(),
		Size: 3, Sum: SumOf([]byte("abc")),
		Job: &Job{Channel: "backup", Epoch: [8]byte{1}, Seq: 1, Handler: "restore", Args: []string{"-x", "", "two words\n\xff"},
			Env: [][2]string{{"LEVEL", "1"}, {"EMPTY", ""}}, NotBefore: t0, After: fixedID(9), Supersede: "nightly",
			PrevEpoch: [8]byte{0, 1}, PrevSeq: 77},
	}
}

func fullResult() *Envelope {
	return &Envelope{
		ID: fixedID(5), Kind: KindResult, Created: fixedID(5).Time().UTC(), Expires: time.Unix(1785000000, 0).UTC(),
		Size: 30, Sum: SumOf([]byte("out")),
		Result: &Result{Ref: fixedID(4), Node: "hub", Channel: "backup", Epoch: [8]byte{1}, Seq: 1, State: JobFailed, Exit: 2, Signal: 9,
			Held: true, Tries: 3, Started: t0, Ended: t0.Add(time.Second), Stdout: 10, Stderr: 20, DroppedOut: 1, DroppedErr: 2, Reason: "killed"},
	}
}

func TestJobsRoundTrip(t *testing.T) {
	void := fullJob()
	void.Job = &Job{Channel: "backup", Epoch: [8]byte{1}, Seq: 2, Kind: JobVoid, Voids: fixedID(4)}
	any := fullJob()
	any.Job = &Job{Channel: "x", Handler: "y"}
	refused := fullResult()
	refused.Size, refused.Sum, refused.Result = 0, [32]byte{}, &Result{Ref: fixedID(4), Channel: "x", State: JobRefused, Reason: "not granted"}
	for _, e := range []*Envelope{fullJob(), void, any, fullResult(), refused} {
		b := AppendEnvelope(nil, e)
		got, err := ParseEnvelope(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, e) || !bytes.Equal(AppendEnvelope(nil, got), b) {
			t.Errorf("got %+v %+v, want %+v", got.Job, got.Result, e)
		}
		stored, err := ParseStored(AppendStored(nil, e))
		if err != nil || !reflect.DeepEqual(stored, e) {
			t.Errorf("stored: got %+v, %v", stored, err)
		}
	}
}

func TestChannelRecordsRoundTrip(t *testing.T) {
	for _, c := range []*ChannelReport{
		{Channel: "a", Epoch: [8]byte{1}, Report: 1, Next: 1},
		{Channel: "a", Epoch: [8]byte{1}, Report: 1 << 60, Incarnation: [8]byte{3}, Next: 3, Held: Ranges{{First: 4, Count: 2}, {First: 9, Count: 1}}, Lost: true, Reason: "barrier"},
	} {
		got, err := ParseChannelReport(c.Append(nil))
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("got %+v, %v, want %+v", got, err, c)
		}
	}
	r := &Resume{Channel: "a", Epoch: [8]byte{1}, Number: 4, For: [8]byte{2}, Floor: 5, Next: 9, Maybe: Ranges{{First: 5, Count: 1}}, Ended: Ranges{{First: 6, Count: 2}}}
	got, err := ParseResume(r.Append(nil))
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, %v, want %+v", got, err, r)
	}
	// the longest record there can be
	c := &ChannelReport{Channel: strings.Repeat("c", MaxJobName), Epoch: [8]byte{1}, Report: 1<<64 - 1, Incarnation: [8]byte{1}, Next: MaxSeq + 1, Lost: true, Reason: strings.Repeat("r", MaxReason)}
	for i := range MaxRanges {
		c.Held = append(c.Held, Range{First: uint64(i+1) * (MaxSeq / 1030), Count: MaxSeq / 2000})
	}
	if n := len(c.Append(nil)); n > RecordChannel.MaxBody() {
		t.Errorf("a channel record of %d bytes", n)
	}
}

// jobWith is a good job, changed.
func jobWith(change func(*Job)) []byte {
	e := fullJob()
	change(e.Job)
	return AppendEnvelope(nil, e)
}

func resultWith(change func(*Result)) []byte {
	e := fullResult()
	change(e.Result)
	return AppendEnvelope(nil, e)
}

func TestJobNames(t *testing.T) {
	for s, want := range map[string]bool{"backup": true, "a.B_c-9": true, "9": true, "": false, ".x": false, "-x": false, "_x": false,
		"a b": false, "a/b": false, "a:b": false, "\u00e4": false, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false} {
		if err := CheckJobName("channel", s); (err == nil) != want || err != nil && !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func jobVectors() []vector {
	id := string(bytes.Repeat([]byte{7}, 16))
	expires := []byte{0x90, 0x9c, 0x82, 0xd3, 0x06}
	job := func(j ...any) []byte { return fields(1, id, 3, expires, 10, fields(j...)) }
	zeros := string(make([]byte, 8))
	return []vector{
		{"envelope", "ok-job", AppendEnvelope(nil, fullJob()), ""},
		{"envelope", "ok-job-without-number", job(1, "x", 5, "y"), ""},
		{"envelope", "ok-job-nop", job(1, "x", 2, "epochnow", 3, 8, 4, 1), ""},
		{"envelope", "ok-job-void", job(1, "x", 2, "epochnow", 3, 8, 4, 3, 11, id), ""},
		{"envelope", "ok-result", AppendEnvelope(nil, fullResult()), ""},
		{"envelope", "job-empty", fields(1, id, 3, expires, 10, ""), "channel"},
		{"envelope", "job-channel-with-slash", job(1, "a/b", 5, "y"), "letters, digits"},
		{"envelope", "job-handler-missing", job(1, "x"), "handler"},
		{"envelope", "job-epoch-of-zeros", job(1, "x", 2, zeros, 3, 8, 5, "y"), "all zeros"},
		{"envelope", "job-number-without-epoch", job(1, "x", 3, 8, 5, "y"), "without epoch"},
		{"envelope", "job-epoch-without-number", job(1, "x", 2, "epochnow", 5, "y"), "without epoch"},
		{"envelope", "job-number-past-48-bits", job(1, "x", 2, "epochnow", 3, MaxSeq+1, 5, "y"), "more than"},
		{"envelope", "job-kind-4", job(1, "x", 2, "epochnow", 3, 8, 4, 4), "job kind 4"},
		{"envelope", "job-nop-with-handler", job(1, "x", 2, "epochnow", 3, 8, 4, 1, 5, "y"), "runs nothing"},
		{"envelope", "job-void-without-id", job(1, "x", 2, "epochnow", 3, 8, 4, 3), "names what it voids"},
		{"envelope", "job-argument-with-zero-byte", jobWith(func(j *Job) { j.Args[0] = "a\x00b" }), "zero byte"},
		{"envelope", "job-arguments-1001", jobWith(func(j *Job) { j.Args = make([]string, MaxJobArgs+1) }), "more than 1000"},
		{"envelope", "ok-job-empty-argument", job(1, "x", 5, "y", 6, ""), ""},
		{"envelope", "job-variable-with-equals-sign", jobWith(func(j *Job) { j.Env[0][0] = "A=B" }), "name of a variable"},
		{"envelope", "job-variable-without-name", jobWith(func(j *Job) { j.Env[0][0] = "" }), "name of a variable"},
		{"envelope", "job-variable-field-unknown", job(1, "x", 5, "y", 7, fields(1, "A", 3, "z")), "unknown field 3"},
		{"envelope", "job-field-unknown", job(1, "x", 5, "y", 14, "z"), "unknown field 14"},
		{"envelope", "job-second-with-previous-epoch", jobWith(func(j *Job) { j.Seq = 2 }), "only the first job"},
		{"envelope", "job-key-with-line-feed", jobWith(func(j *Job) { j.Supersede = "a\nb" }), "control character"},
		{"envelope", "result-empty", fields(1, id, 3, expires, 13, ""), "result of nothing"},
		{"envelope", "result-of-nothing", resultWith(func(r *Result) { r.Ref = ID{} }), "all zeros"},
		{"envelope", "result-state-0", resultWith(func(r *Result) { r.State = 0 }), "state 0"},
		{"envelope", "result-state-10", resultWith(func(r *Result) { r.State = 10 }), "state 10"},
		{"envelope", "result-exit-256", resultWith(func(r *Result) { r.Exit = 256 }), "256, more than 255"},
		{"envelope", "result-longer-than-its-content", resultWith(func(r *Result) { r.Stderr = 21 }), "bytes of output"},
		{"envelope", "result-overflows", resultWith(func(r *Result) { r.Stdout, r.Stderr = 1<<63-1, 1<<63-1 }), "bytes of output"},
		{"envelope", "result-reason-of-two-lines", fields(1, id, 3, expires, 13, fields(1, id, 3, "x", 6, 1, 17, "a\nb")), "not one line"},
		{"envelope", "result-field-unknown", fields(1, id, 3, expires, 13, fields(1, id, 3, "x", 6, 1, 18, "a")), "unknown field 18"},
	}
}

func channelVectors() []vector {
	e := "epochnow"
	held := "\x04\x01\x02\x00"
	return []vector{
		{"channel", "ok-all", (&ChannelReport{Channel: "a", Epoch: [8]byte{1}, Report: 7, Incarnation: [8]byte{3}, Next: 3, Held: Ranges{{First: 4, Count: 2}, {First: 9, Count: 1}}, Lost: true, Reason: "barrier"}).Append(nil), ""},
		{"channel", "ok-nothing-held", fields(1, "a", 2, e, 3, 1, 5, 1), ""},
		{"channel", "channel-missing", fields(2, e, 3, 1, 5, 1), "channel"},
		{"channel", "epoch-missing", fields(1, "a", 3, 1, 5, 1), "without epoch"},
		{"channel", "report-missing", fields(1, "a", 2, e, 5, 1), "without epoch or number"},
		{"channel", "next-missing", fields(1, "a", 2, e, 3, 1), "without epoch or number"},
		{"channel", "held-empty", fields(1, "a", 2, e, 3, 1, 5, 1, 6, ""), "field 6 is empty"},
		{"channel", "held-touching", fields(1, "a", 2, e, 3, 1, 5, 1, 6, "\x04\x01\x00\x00"), "two ranges that are one"},
		{"channel", "reason-of-two-lines", fields(1, "a", 2, e, 3, 1, 5, 1, 6, held, 8, "a\nb"), "not one line"},
		{"channel", "field-unknown", fields(1, "a", 2, e, 3, 1, 5, 1, 9, "x"), "unknown field 9"},
		{"resume", "ok-all", (&Resume{Channel: "a", Epoch: [8]byte{1}, Number: 4, For: [8]byte{2}, Floor: 5, Next: 9, Maybe: Ranges{{First: 5, Count: 1}}, Ended: Ranges{{First: 6, Count: 2}}}).Append(nil), ""},
		{"resume", "ok-nothing-left", fields(1, "a", 2, e, 3, 1, 5, 9, 6, 9), ""},
		{"resume", "floor-missing", fields(1, "a", 2, e, 3, 1, 6, 9), "floor of 0"},
		{"resume", "floor-above-next", fields(1, "a", 2, e, 3, 1, 5, 10, 6, 9), "above the next"},
		{"resume", "number-missing", fields(1, "a", 2, e, 5, 1, 6, 9), "without epoch or number"},
		{"resume", "field-unknown", fields(1, "a", 2, e, 3, 1, 5, 1, 6, 9, 9, "x"), "unknown field 9"},
	}
}
