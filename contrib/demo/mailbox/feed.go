package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
)

// sentMail is what the folder of sent mails keeps of one: its text in a file of its own, and this in the index.
type sentMail struct {
	File  string   `json:"file"`
	Shape string   `json:"shape"`
	To    []string `json:"to"`
}

const indexFile = "index.json"

// feed hands over mails, and keeps what was accepted in the folder sent.
func feed(list []mail, addr, sendmail, sent string) error {
	if err := os.MkdirAll(sent, 0o755); err != nil {
		return err
	}
	c, err := smtp.Dial(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Hello("mailbox." + here); err != nil {
		return err
	}
	var index []sentMail
	var size, piped int
	for i, m := range list {
		submit := bySMTP(c)
		if m.sendmail {
			piped++
			submit = bySendmail(sendmail)
		}
		if err := submit(m); err != nil {
			return fmt.Errorf("mail %d (%s): %w", i, m.shape, err)
		}
		e := sentMail{File: fmt.Sprintf("%03d.eml", i), Shape: m.shape, To: m.to}
		if err := os.WriteFile(filepath.Join(sent, e.File), m.text, 0o644); err != nil {
			return err
		}
		index = append(index, e)
		size += len(m.text)
	}
	b, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(sent, indexFile), b, 0o644); err != nil {
		return err
	}
	fmt.Printf("%d mails of %d shapes, %.1f MB: %d by SMTP, %d by sendmail, all accepted.\n", len(list), len(shapes)+1, float64(size)/1e6, len(list)-piped, piped)
	return c.Quit()
}

// bySMTP sends over an open session. net/smtp asks for SMTPUTF8 and 8BITMIME where the server offers them.
func bySMTP(c *smtp.Client) func(mail) error {
	return func(m mail) error {
		if err := c.Mail(m.from); err != nil {
			return err
		}
		for _, to := range m.to {
			if err := c.Rcpt(to); err != nil {
				return err
			}
		}
		w, err := c.Data()
		if err != nil {
			return err
		}
		_, err = w.Write(bytes.ReplaceAll(m.text, []byte("\n"), []byte("\r\n")))
		return errors.Join(err, w.Close())
	}
}

func bySendmail(program string) func(mail) error {
	return func(m mail) error {
		args := []string{"-i", "-f", m.from, "--"}
		if m.extract {
			args = []string{"-t", "-i", "-f", m.from}
		} else {
			args = append(args, m.to...)
		}
		cmd := exec.Command(program, args...)
		cmd.Stdin = bytes.NewReader(m.text)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %q: %w: %s", program, args, err, bytes.TrimSpace(out))
		}
		return nil
	}
}
