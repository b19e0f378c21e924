package envelope

import "testing"

func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"":                             "",
		"grüße, 你好":                    "grüße, 你好",
		"a\r\nBcc: b\tc\u2028d\u2029e": "a  Bcc: b c d e",
		"a\x00b\x1bc\xffd":             "a?b?c?d",
		"x\u202egpj.exe\u200b":         "x?gpj.exe?",
		"no\u00a0break":                "no break",
	} {
		if got := Printable(s); got != want {
			t.Errorf("%q becomes %q, want %q", s, got, want)
		}
	}
}
