package control

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// shapeMinutes are the classes of qshape(1).
var shapeMinutes = []int{5, 10, 20, 40, 80, 160, 320, 640, 1280}

// shaper counts what waits.
type shaper struct {
	now   time.Time
	total ShapeRow
	rows  map[string]*ShapeRow
}

// count adds recipients of an envelope that arrived at a time.
func (s *shaper) count(name string, arrived int64, n int) {
	r := s.rows[name]
	if r == nil {
		r = &ShapeRow{Name: name, Ages: make([]int, len(shapeMinutes)+1)}
		s.rows[name] = r
	}
	age := s.now.Unix() - arrived
	k := 0
	for k < len(shapeMinutes) && age > int64(shapeMinutes[k])*60 {
		k++
	}
	for _, r := range []*ShapeRow{r, &s.total} {
		r.Total += n
		r.Ages[k] += n
	}
}

// shape is GET /v1/qshape.
func (n *Node) shape(r *http.Request) (*QueueShape, error) {
	f, err := n.filterOf(r.FormValue)
	if err != nil {
		return nil, err
	}
	by := r.FormValue("by")
	if by == "" {
		by = "neighbour"
	}
	if by != "neighbour" && by != "domain" {
		return nil, &Error{Message: fmt.Sprintf("the queue has no shape by %q", printable(by)), Hint: "neighbour or domain", Exit: ExitUsage}
	}
	s := shaper{now: time.Now(), total: ShapeRow{Name: "TOTAL", Ages: make([]int, len(shapeMinutes)+1)}, rows: map[string]*ShapeRow{}}
	err = n.eachItem(r.Context(), f, func(q QueueItem) error {
		s.item(&q, by)
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := &QueueShape{By: by, Minutes: shapeMinutes, Total: s.total, Rows: []ShapeRow{}}
	for _, r := range s.rows {
		out.Rows = append(out.Rows, *r)
	}
	slices.SortFunc(out.Rows, func(a, b ShapeRow) int {
		if a.Total != b.Total {
			return b.Total - a.Total
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

func (s *shaper) item(q *QueueItem, by string) {
	if by == "domain" {
		for i := range q.Recipients {
			a := q.Recipients[i].Address
			s.count(strings.ToLower(a[strings.LastIndexByte(a, '@')+1:]), q.ArrivalTime, 1)
		}
		return
	}
	waits := map[string]int{} // recipients that wait for a leg
	for i := range q.Recipients {
		waits[q.Recipients[i].Link]++
	}
	for i := range q.Legs {
		l := &q.Legs[i]
		if l.State == "done" {
			continue
		}
		name := l.Via
		if name == "" {
			name = l.Dest
		}
		n := max(waits[l.Dest], 1)
		delete(waits, l.Dest)
		s.count(name, q.ArrivalTime, n)
	}
}
