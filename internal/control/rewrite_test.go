package control

import (
	"testing"

	"mochila/bridge"
	"mochila/bridge/route"
)

func TestRewriteHeader(t *testing.T) {
	rule := func(from, to string) bridge.Rewrite {
		p, err := route.ParsePattern(from)
		if err != nil {
			t.Fatal(err)
		}
		return bridge.Rewrite{From: p, To: to, Headers: true}
	}
	rules := []bridge.Rewrite{rule("root@camp.internal", "admin@camp.example"), rule("camp.internal", "camp.example"), rule("*.camp.internal", "camp.example")}
	for in, want := range map[string]string{
		"From: Ana <ana@camp.internal>\r\n":                        "From: Ana <ana@camp.example>\r\n",
		"FROM : ana@Camp.Internal\r\n":                             "FROM : ana@camp.example\r\n",
		"To: a@x.example,\r\n\troot@camp.internal,b@camp.internal": "To: a@x.example,\r\n\tadmin@camp.example,b@camp.example",
		"Cc: \"ana@camp.internal\" <ana@pc1.camp.internal>;\r\n":   "Cc: \"ana@camp.example\" <ana@camp.example>;\r\n",
		"Cc: \"an a\"@camp.internal\r\n":                           "Cc: \"an a\"@camp.example\r\n",
		"Subject: ana@camp.internal\r\n":                           "Subject: ana@camp.internal\r\n",
		"From: ana@camp.internal.org, b@xcamp.internal\r\n":        "From: ana@camp.internal.org, b@xcamp.internal\r\n",
		"From: @, a@, @camp.internal, x@camp.internal.\r\n":        "From: @, a@, @camp.internal, x@camp.example.\r\n",
		"From: añá@camp.internal (at @camp.internal)\r\nX: y\r\n":  "From: añá@camp.example (at @camp.internal)\r\nX: y\r\n",
		"": "",
	} {
		if got := string(rewriteHeader([]byte(in), rules)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
