package e2e

import (
	"math/rand/v2"
	"sync"
	"testing"

	"mochila/internal/peertest"
)

// TestScenarioSerial: a cable between two terminals, one direction at a time, on which bits flip.
func TestScenarioSerial(t *testing.T) {
	scenario(t, way{join: func(t *testing.T, camp, hub *node) joined {
		var mu sync.Mutex
		r := rand.New(rand.NewPCG(1, 9))
		cable := peertest.NewPTYs(t, func(b []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			if r.IntN(100) > 0 {
				return false
			}
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			return true
		})
		const opts = "?baud=1000000"
		return joined{
			camp:   side{url: "serial:" + cable.A + opts},
			hub:    side{conf: "[link]\nlisten = [\"serial:" + cable.B + opts + "\"]\n"},
			faults: func() int { return int(cable.Faults.Load()) },
		}
	}})
}
