package main

import (
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"mochila/internal/config"
	"mochila/internal/control"
)

func (a *app) traceCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "trace ID",
		Short: "tell the life of one envelope",
		Long:  "Shows every custody event of one envelope that this node knows of, how each recipient ended, and what comes next.",
		Args:  takes("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			t, err := get[control.Trace](c.Context(), a, "/v1/trace/"+url.PathEscape(args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(t, false)
			}
			a.showItem(t.Item)
			a.printf("\n")
			for _, e := range t.Events {
				a.printf("%s  %-10s %s\n", e.At.Local().Format("2006-01-02 15:04:05"), safe(e.What), safe(e.Detail))
			}
			for _, f := range t.Final {
				a.printf("ended: %s %s%s: %s\n", safe(f.Address), safe(f.Action), when(f.MTA != "", " by "+safe(f.MTA)), safe(f.Status))
			}
			if t.Done && len(t.Final) == 0 {
				a.printf("ended\n")
			}
			for _, s := range t.Next {
				a.printf("next: %s\n", safe(s))
			}
			return nil
		},
	}
}

func (a *app) routeCmd() *cobra.Command {
	c := group(&cobra.Command{Use: "route", Short: "which way mail takes"})
	var from, size string
	test := &cobra.Command{
		Use:     "test ADDRESS",
		Short:   "tell which way mail to an address takes, why, and when",
		Long:    "Tells which rule takes mail to ADDRESS, and why those before it do not. The exit status is 69 when none does.",
		Example: "  mochila route test ana@hub.example --from joe@camp.example --size 20M",
		Args:    takes("ADDRESS"),
		RunE: func(c *cobra.Command, args []string) error {
			v := url.Values{"to": {args[0]}, "from": {from}}
			if size != "" {
				n, err := config.ParseSize(size)
				if err != nil {
					return usageError("", "--size: %v", err)
				}
				v.Set("size", strconv.FormatInt(int64(n), 10))
			}
			r, err := get[control.RouteTest](c.Context(), a, "/v1/route?"+v.Encode())
			if err != nil {
				return err
			}
			if a.json {
				err = a.asJSON(r, false)
			} else {
				a.printf("%s\n", safe(r.Result))
				for _, w := range r.Why {
					a.printf("  %s\n", safe(w))
				}
				if r.Next != "" {
					a.printf("next contact: %s\n", safe(r.Next))
				}
			}
			if err == nil && !r.OK {
				err = exit(control.ExitUnavailable)
			}
			return err
		},
	}
	test.Flags().StringVar(&from, "from", "", "sender `address` (default the null sender)")
	test.Flags().StringVar(&size, "size", "", "`size` of the message, such as 20k or 10MiB")
	c.AddCommand(test)
	return c
}
