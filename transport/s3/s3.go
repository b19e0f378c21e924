package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"

	"mochila/transport"
)

// Folder is a bucket, or the part of it below a prefix. It is safe for concurrent use and keeps nothing open.
type Folder struct {
	client *minio.Core
	bucket string
	prefix string // "" or ends with a slash
	part   int64

	plain atomic.Bool // the store knows no If-None-Match

	mu    sync.Mutex
	swept map[string]bool // directories whose unfinished uploads were looked at
}

func (f *Folder) key(dir, name string) string { return f.prefix + dir + "/" + name }

// String is the carrier URL without options.
func (f *Folder) String() string { return strings.TrimSuffix("s3:"+f.bucket+"/"+f.prefix, "/") }

// Put implements transport.Folder. What fits into one part is one request, which the store sees whole or not at all.
func (f *Folder) Put(ctx context.Context, dir, name string, size int64, r io.Reader) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	src := transport.Exactly(r, size)
	var err error
	if size <= f.part {
		err = f.putSmall(ctx, dir, name, size, src)
	} else {
		err = f.putBig(ctx, dir, name, size, src)
	}
	if cause := src.Err(); cause != nil && err != nil {
		return cause
	}
	return f.explain(ctx, err)
}

func (f *Folder) putSmall(ctx context.Context, dir, name string, size int64, src io.Reader) error {
	b := make([]byte, size)
	if _, err := io.ReadFull(src, b); err != nil {
		return err
	}
	o := f.putOptions()
	o.DisableMultipart = true
	_, isPacket := transport.ParseID(name)
	once := isPacket == nil && !f.plain.Load()
	if once {
		o.SetMatchETagExcept("*")
	}
	send := func() error {
		_, err := f.client.Client.PutObject(ctx, f.bucket, f.key(dir, name), bytes.NewReader(b), size, o)
		return err
	}
	err := send()
	if !once || err == nil {
		return err
	}
	switch code := minio.ToErrorResponse(err); {
	case code.Code == "NotImplemented" || code.StatusCode == 501:
		f.plain.Store(true)
	case code.StatusCode == 412 || code.StatusCode == 409:
		if sum := md5.Sum(b); f.there(ctx, dir, name, size, hex.EncodeToString(sum[:])) {
			return nil
		}
	default:
		return err
	}
	o = f.putOptions()
	o.DisableMultipart = true
	return send()
}

// putBig sends an object in parts; the store puts them together at the end, or nothing appears.
func (f *Folder) putBig(ctx context.Context, dir, name string, size int64, src io.Reader) error {
	if _, err := transport.ParseID(name); err == nil && f.there(ctx, dir, name, size, "") {
		return nil
	}
	f.sweep(ctx, dir)
	o := f.putOptions()
	o.PartSize = uint64(max(f.part, size/9000))
	_, err := f.client.Client.PutObject(ctx, f.bucket, f.key(dir, name), src, size, o)
	return err
}

func (f *Folder) putOptions() minio.PutObjectOptions {
	return minio.PutObjectOptions{ContentType: "application/octet-stream", NumThreads: 1, SendContentMd5: true}
}

// there reports whether a packet lies there already: with that size, and with that MD5 where the store tells it.
func (f *Folder) there(ctx context.Context, dir, name string, size int64, sum string) bool {
	info, err := f.client.StatObject(ctx, f.bucket, f.key(dir, name), minio.StatObjectOptions{})
	if err != nil || info.Size != size {
		return false
	}
	tag := strings.Trim(info.ETag, `"`)
	return sum == "" || len(tag) != 2*md5.Size || tag == sum
}

// sweep ends uploads that an earlier life of this node left unfinished, which cost rent: once per directory and process.
func (f *Folder) sweep(ctx context.Context, dir string) {
	f.mu.Lock()
	done := f.swept[dir]
	if f.swept == nil {
		f.swept = map[string]bool{}
	}
	f.swept[dir] = true
	f.mu.Unlock()
	if done {
		return
	}
	list, err := f.client.ListMultipartUploads(ctx, f.bucket, f.prefix+dir+"/", "", "", "", 1000)
	if err != nil {
		return // a right that may be missing
	}
	for _, u := range list.Uploads {
		if time.Since(u.Initiated) > 24*time.Hour {
			f.client.AbortMultipartUpload(ctx, f.bucket, u.Key, u.UploadID)
		}
	}
}

// list calls fn for the objects and the directories right below dir.
func (f *Folder) list(ctx context.Context, dir string, fn func(name string, isDir bool, size int64) (more bool)) error {
	if err := transport.CheckPath(dir, ""); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the lister
	at := f.prefix + dir + "/"
	for o := range f.client.Client.ListObjectsIter(ctx, f.bucket, minio.ListObjectsOptions{Prefix: at}) {
		if o.Err != nil {
			return f.explain(ctx, o.Err)
		}
		name, isDir := strings.CutSuffix(strings.TrimPrefix(o.Key, at), "/")
		if transport.Hidden(name) {
			continue
		}
		if !fn(name, isDir, o.Size) {
			return nil
		}
	}
	return ctx.Err()
}

// List implements transport.Folder. It takes one request for each thousand objects.
func (f *Folder) List(ctx context.Context, dir string) ([]transport.Entry, error) {
	var all []transport.Entry
	err := f.list(ctx, dir, func(name string, isDir bool, size int64) bool {
		if !isDir {
			all = append(all, transport.Entry{Name: name, Size: size})
		}
		return len(all) < transport.MaxListed
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.key(dir, ""), err)
	}
	return all, nil
}

// Dirs implements transport.Folder.
func (f *Folder) Dirs(ctx context.Context, dir string) ([]string, error) {
	var all []string
	err := f.list(ctx, dir, func(name string, isDir bool, _ int64) bool {
		if isDir {
			all = append(all, name)
		}
		return len(all) < transport.MaxListed
	})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", f.key(dir, ""), err)
	}
	return all, nil
}

// Get implements transport.Folder.
func (f *Folder) Get(ctx context.Context, dir, name string) (io.ReadCloser, error) {
	if err := transport.CheckFile(dir, name); err != nil {
		return nil, err
	}
	r, _, _, err := f.client.GetObject(ctx, f.bucket, f.key(dir, name), minio.GetObjectOptions{})
	if err != nil {
		return nil, f.explain(ctx, err)
	}
	return r, nil
}

// Remove implements transport.Folder.
func (f *Folder) Remove(ctx context.Context, dir, name string) error {
	if err := transport.CheckFile(dir, name); err != nil {
		return err
	}
	err := f.client.RemoveObject(ctx, f.bucket, f.key(dir, name), minio.RemoveObjectOptions{})
	if minio.ToErrorResponse(err).Code == "NoSuchKey" {
		return nil
	}
	return f.explain(ctx, err)
}

// RemoveAll implements transport.Sweeper: one request for each thousand.
func (f *Folder) RemoveAll(ctx context.Context, dir string, names []string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	objects := make(chan minio.ObjectInfo)
	go func() { // ends with ctx
		defer close(objects)
		for _, name := range names {
			if transport.CheckFile(dir, name) != nil {
				continue
			}
			select {
			case objects <- minio.ObjectInfo{Key: f.key(dir, name)}:
			case <-ctx.Done():
				return
			}
		}
	}()
	var first error
	for e := range f.client.RemoveObjects(ctx, f.bucket, objects, minio.RemoveObjectsOptions{}) {
		if first == nil && minio.ToErrorResponse(e.Err).Code != "NoSuchKey" {
			first = f.explain(ctx, e.Err)
		}
	}
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// Flush implements transport.Folder: what was put is there.
func (f *Folder) Flush(ctx context.Context) error { return ctx.Err() }

// explain says what an error means here, and what would help.
func (f *Folder) explain(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var network net.Error
	r := minio.ToErrorResponse(err)
	host := f.client.EndpointURL().Host
	switch r.Code {
	case "NoSuchKey":
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case "NoSuchBucket":
		return transport.WithHint(fmt.Errorf("there is no bucket %q at %s", f.bucket, host), "make it, or mend the name; mochila never makes a bucket")
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidTokenId", "ExpiredToken", "TokenRefreshRequired":
		return transport.WithHint(fmt.Errorf("%s does not accept the credentials: %w", host, err), "%s", whereKeys)
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		return transport.WithHint(fmt.Errorf("%s forbids it: %w", host, err), "the key needs s3:ListBucket on %s, and s3:GetObject, s3:PutObject, s3:DeleteObject on %s/%s*", f.bucket, f.bucket, f.prefix)
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		return transport.WithHint(fmt.Errorf("the bucket %q is in another region: %w", f.bucket, err), "add region=… to the carrier (the store says %s)", r.Region)
	case "RequestTimeTooSkewed":
		return transport.WithHint(fmt.Errorf("%s: %w", host, err), "set this machine's clock")
	case "SlowDown", "Throttling", "RequestLimitExceeded":
		return transport.WithHint(fmt.Errorf("%s asks to slow down: %w", host, err), "a greater every= in the contact takes fewer requests")
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage":
		return fmt.Errorf("%w: %w", transport.ErrFull, err)
	}
	switch {
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: reach %s: %w", transport.ErrAbsent, host, err)
	case r.StatusCode == 507:
		return fmt.Errorf("%w: %w", transport.ErrFull, err)
	case r.StatusCode == 403:
		return transport.WithHint(fmt.Errorf("%s forbids it: %w", host, err), "%s", whereKeys)
	}
	return fmt.Errorf("%s: %w", host, err)
}
