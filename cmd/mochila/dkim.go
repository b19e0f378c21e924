package main

import (
	"github.com/spf13/cobra"

	"mochila/internal/control"
)

func (a *app) dkimCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "dkim",
		Short: "show the DNS records of the keys that sign mail",
		Long: `Prints the TXT records that publish the keys of [[dkim]]. Mail of local users and accounts is signed when its From
field has a domain with a key. A key is made by one of

  openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out dkim.pem
  openssl genpkey -algorithm ED25519 -out dkim.pem

and belongs to the daemon's user, with mode 0600.`,
		Args: takes(),
		RunE: func(c *cobra.Command, _ []string) error {
			records, err := get[[]control.DKIMRecord](c.Context(), a, "/v1/dkim")
			if err != nil {
				return err
			}
			if a.json {
				return a.asJSON(records, false)
			}
			if len(*records) == 0 {
				a.printf("No mail is signed. [[dkim]] in mochila.toml names domain, selector and key.\n")
			}
			for _, r := range *records {
				a.printf("%s. IN TXT (", safe(r.Name))
				for text := r.Record; text != ""; { // a string of a TXT record has 255 octets at most
					n := min(len(text), 250)
					a.printf(" %q", text[:n])
					text = text[n:]
				}
				a.printf(" )\n")
			}
			return nil
		},
	}
}
