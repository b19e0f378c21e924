// Package dav is the carriers dav (http) and davs (https): a folder of a WebDAV server, such as Nextcloud, ownCloud, a NAS
// or a hoster's. A packet goes up under a name that readers pass over, its length is asked for, and it is moved to its name.
package dav

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"mochila/transport"
)

// Schemes are the carriers dav and davs.
func Schemes() []transport.Scheme {
	return []transport.Scheme{
		{Name: "davs", Form: "davs:cloud.example/remote.php/dav/files/camp/net", Parse: func(rest string, opts url.Values) (transport.Carrier, error) {
			return parse("https", rest, opts)
		}},
		{Name: "dav", Form: "dav:nas.local:8080/net", Parse: func(rest string, opts url.Values) (transport.Carrier, error) {
			return parse("http", rest, opts)
		}},
	}
}

func parse(proto, rest string, opts url.Values) (transport.Carrier, error) {
	host, dir, _ := strings.Cut(rest, "/")
	if host == "" || strings.ContainsAny(host, "@ \\") {
		return transport.Carrier{}, transport.WithHint(fmt.Errorf("%q is not HOST[:PORT]/PATH", rest), "as in davs:cloud.example/net; user and password stand in a file, secret=/FILE")
	}
	root, err := url.Parse(proto + "://" + host + path.Clean("/"+dir))
	if err != nil {
		return transport.Carrier{}, fmt.Errorf("%q: %w", rest, err)
	}
	f := &Folder{root: root, secret: transport.Take(opts, "secret"), inPlace: transport.Take(opts, "inplace") == "yes",
		made: map[string]bool{}, swept: map[string]bool{}}
	if insecure := transport.Take(opts, "insecure") == "yes"; f.secret != "" && proto == "http" && !insecure && !isLoopback(root.Hostname()) {
		return transport.Carrier{}, transport.WithHint(errors.New("the password would cross the network in clear"), "use davs:, or insecure=yes where the network is your own")
	}
	f.client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: 30 * time.Second}).DialContext, TLSHandshakeTimeout: 30 * time.Second,
			ResponseHeaderTimeout: 5 * time.Minute, ExpectContinueTimeout: 2 * time.Second, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4,
		},
	}
	return transport.Carrier{Folder: f}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Folder is a collection of a WebDAV server. It is safe for concurrent use.
type Folder struct {
	root    *url.URL
	secret  string // file with USER:PASSWORD, or "Bearer TOKEN"
	inPlace bool   // the server has no MOVE
	client  *http.Client

	turn sync.Mutex // of uploads in place

	mu    sync.Mutex
	made  map[string]bool // directories that are there
	swept map[string]bool // directories whose leftovers were removed by this process
}

// String is the carrier URL without options.
func (f *Folder) String() string {
	return strings.Replace(strings.Replace(f.root.String(), "https://", "davs:", 1), "http://", "dav:", 1)
}

func (f *Folder) at(parts ...string) string { return f.root.JoinPath(parts...).String() }

// do makes one request. The caller closes the body. A status that is not in ok is an error.
func (f *Folder) do(ctx context.Context, method, at string, header map[string]string, body io.Reader, size int64, ok ...int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, at, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	for k, v := range header {
		req.Header.Set(k, v)
	}
	if f.secret != "" {
		s, err := transport.SecretFile(f.secret)
		if err != nil {
			return nil, err
		}
		user, password, isBasic := strings.Cut(s, ":")
		switch {
		case strings.HasPrefix(s, "Bearer "):
			req.Header.Set("Authorization", s)
		case isBasic:
			req.SetBasicAuth(user, password)
		default:
			return nil, transport.WithHint(fmt.Errorf("%s is not USER:PASSWORD", f.secret), "one line; or Bearer and a token")
		}
	}
	resp, err := f.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var cert interface{ Unwrap() error }
		if strings.Contains(err.Error(), "x509:") && errors.As(err, &cert) {
			return nil, transport.WithHint(err, "the server's certificate is not one that this machine trusts (update-ca-certificates)")
		}
		return nil, fmt.Errorf("%w: %w", transport.ErrAbsent, err)
	}
	for _, s := range ok {
		if resp.StatusCode == s {
			return resp, nil
		}
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return nil, f.explain(resp)
}

// statusError is an answer that was not wanted.
type statusError int

func (s statusError) Error() string {
	return fmt.Sprintf("the server answers %d %s", int(s), http.StatusText(int(s)))
}

func status(err error) int {
	var s statusError
	if errors.As(err, &s) {
		return int(s)
	}
	return 0
}

// explain says what an answer means, and what would help.
func (f *Folder) explain(resp *http.Response) error {
	err := fmt.Errorf("%s %s: %w", resp.Request.Method, resp.Request.URL.Redacted(), statusError(resp.StatusCode))
	switch resp.StatusCode {
	case 401:
		if f.secret == "" {
			return transport.WithHint(err, "add secret=/FILE; USER:PASSWORD stands in that file, which has mode 600")
		}
		return transport.WithHint(err, "the server does not accept what stands in %s", f.secret)
	case 403:
		return transport.WithHint(err, "the user has no right to do this there")
	case 404, 410:
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case 405:
		return transport.WithHint(err, "this is no WebDAV folder, or one that cannot be written")
	case 413, 507:
		return fmt.Errorf("%w: %w", transport.ErrFull, err)
	case 429, 503:
		return transport.WithHint(err, "a greater every= in the contact takes fewer requests")
	}
	if to := resp.Header.Get("Location"); to != "" {
		return transport.WithHint(err, "it points to %s: write that address", to)
	}
	return err
}

// quiet makes a request whose answer's body says nothing.
func (f *Folder) quiet(ctx context.Context, method, at string, header map[string]string, ok ...int) error {
	resp, err := f.do(ctx, method, at, header, nil, 0, ok...)
	if err != nil {
		return err
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return resp.Body.Close()
}

// Put implements transport.Folder.
func (f *Folder) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if f.inPlace { // two uploads under one name would damage each other
		f.turn.Lock()
		defer f.turn.Unlock()
	}
	if err := f.makeDir(ctx, dir); err != nil {
		return err
	}
	goal := f.at(dir, name)
	if _, err := transport.ParseID(name); err == nil {
		if n, err := f.size(ctx, goal); err == nil && n == size {
			return nil
		}
	}
	f.sweep(ctx, dir)
	temp := f.at(dir, transport.TempName())
	if f.inPlace {
		temp = goal
	}
	src := transport.Exactly(r, size)
	err := f.upload(ctx, temp, size, src)
	if err == nil && !f.inPlace {
		err = f.move(ctx, temp, goal)
		if s := status(err); s == 405 || s == 501 {
			err = transport.WithHint(err, "a server without MOVE takes inplace=yes")
		}
	}
	if err == nil {
		return nil
	}
	f.drop(ctx, temp)
	if s := status(err); s == 409 || s == 404 {
		f.mu.Lock()
		delete(f.made, dir) // somebody removed it
		f.mu.Unlock()
	}
	if cause := src.Err(); cause != nil {
		return cause
	}
	return err
}

// upload sends a file and makes sure that it is there in its length.
func (f *Folder) upload(ctx context.Context, at string, size int64, src io.Reader) error {
	resp, err := f.do(ctx, "PUT", at, map[string]string{"Content-Type": "application/octet-stream", "Expect": "100-continue"}, io.NopCloser(src), size, 200, 201, 204)
	if err != nil {
		return err
	}
	resp.Body.Close()
	n, err := f.size(ctx, at)
	if err != nil {
		return fmt.Errorf("look at what was written: %w", err)
	}
	if n != size {
		return fmt.Errorf("%d bytes are there, %d were written", n, size)
	}
	return nil
}

// move renames a file over whatever is there. Another upload of the same packet may hold a lock for a moment.
func (f *Folder) move(ctx context.Context, from, to string) error {
	for try := 0; ; try++ {
		err := f.quiet(ctx, "MOVE", from, map[string]string{"Destination": to, "Overwrite": "T"}, 200, 201, 204)
		if status(err) != 423 || try == 5 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond << try):
		}
	}
}

// drop deletes what an upload left, even when ctx is done.
func (f *Folder) drop(ctx context.Context, at string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	f.quiet(ctx, "DELETE", at, nil, 200, 204, 404)
}

// makeDir makes the directories below the root, which exists.
func (f *Folder) makeDir(ctx context.Context, dir string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.made[dir] {
		return nil
	}
	parts := strings.Split(dir, "/")
	for i := range parts {
		err := f.quiet(ctx, "MKCOL", f.at(parts[:i+1]...)+"/", nil, 201, 405, 301) // 405: it is there
		if status(err) == 409 {
			return f.noRoot(err)
		}
		if err != nil {
			return err
		}
	}
	f.made[dir] = true
	return nil
}

func (f *Folder) noRoot(err error) error {
	return transport.WithHint(fmt.Errorf("there is no folder %s: %w", f, err), "make it there; mochila makes nothing above its own folder")
}

// size is the length of one file.
func (f *Folder) size(ctx context.Context, at string) (int64, error) {
	var n int64 = -1
	err := f.propfind(ctx, at, "0", func(r *response) bool { n = r.size(); return false })
	return n, err
}

// response is one resource of a PROPFIND's answer, RFC 4918 section 14.24.
type response struct {
	Href  string `xml:"href"`
	Props []struct {
		Status   string    `xml:"status"`
		Length   string    `xml:"prop>getcontentlength"`
		Modified string    `xml:"prop>getlastmodified"`
		Folder   *struct{} `xml:"prop>resourcetype>collection"`
	} `xml:"propstat"`
}

func (r *response) isDir() bool {
	for _, p := range r.Props {
		if p.Folder != nil {
			return true
		}
	}
	return false
}

func (r *response) size() int64 {
	for _, p := range r.Props {
		if n, err := strconv.ParseInt(p.Length, 10, 64); err == nil && n >= 0 {
			return n
		}
	}
	return -1
}

func (r *response) modified() time.Time {
	for _, p := range r.Props {
		if t, err := http.ParseTime(p.Modified); err == nil {
			return t
		}
	}
	return time.Now()
}

const wanted = `<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getlastmodified/></prop></propfind>`

// propfind calls fn for each resource, as they come.
func (f *Folder) propfind(ctx context.Context, at, depth string, fn func(*response) (more bool)) error {
	resp, err := f.do(ctx, "PROPFIND", at, map[string]string{"Depth": depth, "Content-Type": "application/xml"}, strings.NewReader(wanted), int64(len(wanted)), 207)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for d := xml.NewDecoder(resp.Body); ; {
		t, err := d.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("read the answer to PROPFIND %s: %w", resp.Request.URL.Redacted(), err)
		}
		start, ok := t.(xml.StartElement)
		if !ok || start.Name.Local != "response" {
			continue
		}
		var r response
		if err := d.DecodeElement(&r, &start); err != nil {
			return fmt.Errorf("read the answer to PROPFIND %s: %w", resp.Request.URL.Redacted(), err)
		}
		if !fn(&r) {
			return nil
		}
	}
}

// children calls fn for what lies right in a directory. A missing one is empty, unless the root is missing, too.
func (f *Folder) children(ctx context.Context, dir string, fn func(name string, r *response) (more bool)) error {
	if err := transport.CheckPath(dir, ""); err != nil {
		return err
	}
	own := path.Clean(f.root.JoinPath(dir).Path)
	err := f.propfind(ctx, f.at(dir)+"/", "1", func(r *response) bool {
		u, err := url.Parse(r.Href)
		if err != nil || path.Dir(path.Clean(u.Path)) != own {
			return true // the directory itself
		}
		return fn(path.Base(u.Path), r)
	})
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := f.propfind(ctx, f.at()+"/", "0", func(*response) bool { return false }); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return f.noRoot(err)
		}
		return err
	}
	return nil
}

// List implements transport.Folder.
func (f *Folder) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	var all []transport.Entry
	err := f.children(ctx, dir, func(name string, r *response) bool {
		if n := r.size(); !r.isDir() && n >= 0 && !transport.Hidden(name) {
			all = append(all, transport.Entry{Name: name, Size: n})
		}
		return len(all) < transport.MaxListed
	})
	return all, err
}

// Dirs implements transport.Folder.
func (f *Folder) Dirs(ctx context.Context, dir string) ([]string, error) {
	var all []string
	err := f.children(ctx, dir, func(name string, r *response) bool {
		if r.isDir() && !transport.Hidden(name) {
			all = append(all, name)
		}
		return len(all) < transport.MaxListed
	})
	return all, err
}

// sweep removes what uploads of an earlier life left, once per directory and process.
func (f *Folder) sweep(ctx context.Context, dir string) {
	f.mu.Lock()
	done := f.swept[dir]
	f.swept[dir] = true
	f.mu.Unlock()
	if done {
		return
	}
	var old []string
	f.children(ctx, dir, func(name string, r *response) bool {
		if transport.IsTemp(name) && time.Since(r.modified()) > 24*time.Hour {
			old = append(old, name)
		}
		return len(old) < 1000
	})
	for _, name := range old {
		f.drop(ctx, f.at(dir, name))
	}
}

// Get implements transport.Folder.
func (f *Folder) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	if err := transport.CheckFile(dir, name); err != nil {
		return nil, err
	}
	resp, err := f.do(ctx, "GET", f.at(dir, name), map[string]string{"Accept-Encoding": "identity"}, nil, 0, 200)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// Remove implements transport.Folder.
func (f *Folder) Remove(ctx context.Context, dir, name string) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	return f.quiet(ctx, "DELETE", f.at(dir, name), nil, 200, 204, 404)
}

// Flush implements transport.Folder: what the server has answered for is its own.
func (f *Folder) Flush(ctx context.Context) error { return ctx.Err() }
