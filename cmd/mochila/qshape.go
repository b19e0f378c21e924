package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"mochila/internal/control"
)

func (a *app) qshapeCmd() *cobra.Command {
	var f filter
	var by string
	c := &cobra.Command{
		Use:   "qshape",
		Short: "show how old the queue is, by neighbour or by domain",
		Long: `Counts the recipients in the queue by place and age, in the layout of Postfix's qshape(1): T is the total, the other
columns are ages in minutes up to that in their heading. Places are the neighbours that mail leaves to, and the deliveries of
this node; with --by domain the domains of recipients.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			v := f.values()
			v.Set("by", by)
			return a.node(c.Context(), func(n *control.Client) error {
				var s control.QueueShape
				if err := n.Get(c.Context(), "/v1/qshape?"+v.Encode(), &s); err != nil {
					return err
				}
				if a.json {
					return a.asJSON(s, false)
				}
				a.printf("%s", shapeText(s))
				return nil
			})
		},
	}
	f.flags(c)
	c.Flags().StringVar(&by, "by", "neighbour", "`neighbour` or domain")
	return c
}

// shapeText is the table: names to the right, and every column as wide as its widest number.
func shapeText(s control.QueueShape) string {
	head := []string{"", "T"}
	last := ""
	for _, m := range s.Minutes {
		last = strconv.Itoa(m)
		head = append(head, last)
	}
	lines := [][]string{append(head, last+"+")}
	for _, r := range append([]control.ShapeRow{s.Total}, s.Rows...) {
		line := []string{safe(r.Name), strconv.Itoa(r.Total)}
		for _, n := range r.Ages {
			line = append(line, strconv.Itoa(n))
		}
		lines = append(lines, line)
	}
	width := make([]int, len(lines[0]))
	for _, l := range lines {
		for i, cell := range l {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var out string
	for _, l := range lines {
		for i, cell := range l {
			if i > 0 {
				out += " "
			}
			out += fmt.Sprintf("%*s", width[i], cell)
		}
		out += "\n"
	}
	return out
}
