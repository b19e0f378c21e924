package control

import (
	"testing"

	"mochila/bridge/route"
	"mochila/internal/config"
	"mochila/internal/envelope"
)

// TestByContact: routes take the summary of the contacts on their way, where none of these takes whole mail.
func TestByContact(t *testing.T) {
	ids := map[string]envelope.NodeID{"camp": {1}, "ferry": {2}, "ship": {3}, "hub": {4}}
	c := &config.Config{Contacts: []config.Contact{{Node: "camp", Summary: 8000}, {Node: "camp", Summary: 9000}, {Node: "ferry", Summary: 7000, Reaches: []string{"ship"}},
		{Node: "hub", Summary: 6000}, {Node: "hub"}}}
	for name, x := range map[string]struct {
		rule route.Rule
		want int64
	}{
		"the largest of two":         {route.Rule{Node: ids["camp"]}, 9000},
		"its own":                    {route.Rule{Node: ids["camp"], Summary: route.Summary{Above: 5000}}, 5000},
		"by what reaches it":         {route.Rule{Node: ids["ship"]}, 7000},
		"by its path":                {route.Rule{Node: ids["camp"], Path: []envelope.NodeID{ids["ferry"]}}, 7000},
		"path by another's reach":    {route.Rule{Node: ids["camp"], Path: []envelope.NodeID{ids["ship"]}}, 0},
		"a contact takes whole mail": {route.Rule{Node: ids["hub"]}, 0},
		"no contact":                 {route.Rule{Node: envelope.NodeID{9}}, 0},
	} {
		rules := []route.Rule{x.rule}
		byContact(c, ids, rules)
		if got := rules[0].Summary; got.Above != x.want || got.Signed || got.Anyone {
			t.Errorf("%s: %+v, want %d", name, got, x.want)
		}
	}
}
