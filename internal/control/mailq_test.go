package control

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestMailqEntry: the columns are Postfix's, also where a value is wider than its column.
func TestMailqEntry(t *testing.T) {
	at := time.Date(2026, 3, 2, 8, 0, 0, 0, time.Local)
	for _, c := range []struct {
		it   QueueItem
		want []string
	}{
		{
			QueueItem{QueueName: "active", QueueID: "06H0FRC3BC311SM39HJHIGH2GO", ArrivalTime: at.Unix(), MessageSize: 257, Kind: "mail", Sender: "joe@hub.example",
				Recipients: []QueueRecipient{{Address: "a@x", DelayReason: "busy"}, {Address: "b@x", DelayReason: "busy"}, {Address: "c\x1b@x", DelayReason: strings.Repeat("é", 80)}}},
			[]string{
				"06H0FRC3BC311SM39HJHIGH2GO*      257 Mon Mar  2 08:00:00 joe@hub.example",
				fmt.Sprintf("%72s(busy)", ""), fmt.Sprintf("%57sa@x", ""), fmt.Sprintf("%57sb@x", ""),
				"(" + strings.Repeat("é", 80) + ")", fmt.Sprintf("%57sc\\033@x", ""), "", "",
			},
		},
		{
			QueueItem{QueueName: "hold", QueueID: "SHORT", ArrivalTime: at.Unix(), MessageSize: 1 << 40, Kind: "report", Origin: "hub", Legs: []QueueLeg{{Dest: "camp"}}},
			[]string{"SHORT                     ! 1099511627776 Mon Mar  2 08:00:00 (report of hub)", fmt.Sprintf("%57scamp", ""), "", ""},
		},
		{
			QueueItem{QueueName: "deferred", QueueID: "06H0FRC3BC311SM39HJHIGH2GO", ArrivalTime: at.Unix(), Kind: "mail", Recipients: []QueueRecipient{{Address: "a@x"}}},
			[]string{"06H0FRC3BC311SM39HJHIGH2GO         0 Mon Mar  2 08:00:00 MAILER-DAEMON", fmt.Sprintf("%57sa@x", ""), "", ""},
		},
	} {
		if got, want := MailqEntry(c.it), strings.Join(c.want, "\n"); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	}
}
