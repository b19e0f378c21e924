// Package s3 is the carrier s3: packets are objects of a bucket of any S3-compatible store. A packet is one object whose
// key is PREFIX/mochila/FROM/TO/PACKET. Nothing is renamed or locked: a PUT is seen whole or not at all, and
// If-None-Match keeps a packet that is there from being sent again.
//
// It never makes a bucket, and it keeps no secret in a configuration: keys come from the environment, from
// ~/.aws/credentials, or from a file that only its owner can read.
package s3

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"mochila/transport"
)

// Scheme is the carrier s3.
var Scheme = transport.Scheme{Name: "s3", Form: "s3:bucket/prefix?region=eu-central-1", Parse: parse}

func parse(rest string, opts url.Values) (transport.Carrier, error) {
	bucket, prefix, _ := strings.Cut(rest, "/")
	if bucket == "" || strings.ContainsAny(bucket, ":@ \\") {
		return transport.Carrier{}, transport.WithHint(fmt.Errorf("%q is not BUCKET or BUCKET/PREFIX", rest), "as in s3:mail-of-our-sites/mochila")
	}
	f := &Folder{bucket: bucket}
	if p := transport.Take(opts, "prefix"); p != "" {
		prefix = p
	}
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		if path.Clean(prefix) != prefix || strings.HasPrefix(prefix, "..") {
			return transport.Carrier{}, fmt.Errorf("prefix %q is not a plain path", prefix)
		}
		f.prefix = prefix + "/"
	}
	host, secure, err := endpoint(transport.Take(opts, "endpoint"))
	if err != nil {
		return transport.Carrier{}, err
	}
	region := transport.Take(opts, "region")
	for _, name := range []string{"AWS_REGION", "AWS_DEFAULT_REGION"} {
		if region == "" {
			region = os.Getenv(name)
		}
	}
	if region == "" && host != amazon {
		region = "us-east-1" // what stores say that have none; asking takes a request and a right
	}
	o := &minio.Options{Secure: secure, Region: region, MaxRetries: 4}
	switch style := transport.Take(opts, "style"); style {
	case "":
	case "path":
		o.BucketLookup = minio.BucketLookupPath
	case "dns":
		o.BucketLookup = minio.BucketLookupDNS
	default:
		return transport.Carrier{}, transport.WithHint(fmt.Errorf("style %q is not path or dns", style), "path: the bucket stands behind the host name; dns: in it")
	}
	o.Creds = credentials.New(&keys{file: transport.Take(opts, "credentials"), profile: transport.Take(opts, "profile")})
	if f.part, err = partSize(transport.Take(opts, "part")); err != nil {
		return transport.Carrier{}, err
	}
	client, err := minio.New(host, o)
	if err != nil {
		return transport.Carrier{}, fmt.Errorf("s3: %w", err)
	}
	f.client = &minio.Core{Client: client}
	return transport.Carrier{Folder: f}, nil
}

const amazon = "s3.amazonaws.com"

// endpoint reads HOST[:PORT], or a URL of one.
func endpoint(s string) (host string, secure bool, err error) {
	if s == "" {
		return amazon, true, nil
	}
	host, secure = s, true
	if rest, ok := strings.CutPrefix(s, "http://"); ok {
		host, secure = rest, false
	} else if rest, ok := strings.CutPrefix(s, "https://"); ok {
		host = rest
	}
	host = strings.TrimSuffix(host, "/")
	if host == "" || strings.ContainsAny(host, "/@? ") {
		return "", false, transport.WithHint(fmt.Errorf("endpoint %q is not a host or a URL of one", s), "as in endpoint=https://minio.example:9000")
	}
	return host, secure, nil
}

const (
	smallest = 5 << 20  // S3 takes no smaller parts but the last
	ordinary = 16 << 20 // memory that an upload takes
)

// partSize is above which size an object is sent in parts, and the size of a part, in MiB.
func partSize(s string) (int64, error) {
	if s == "" {
		return ordinary, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < smallest>>20 || n > 1024 {
		return 0, fmt.Errorf("part=%q is not a number of MiB between 5 and 1024", s)
	}
	return int64(n) << 20, nil
}

// keys finds the credentials anew whenever they are needed: a file, the environment, ~/.aws/credentials, in this order.
type keys struct{ file, profile string }

var errNoKeys = errors.New("no credentials for the store were found")

const whereKeys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws/credentials (profile=NAME), or credentials=/FILE in that form with mode 600"

// Retrieve implements credentials.Provider.
func (k *keys) Retrieve() (credentials.Value, error) { return k.RetrieveWithCredContext(nil) }

// RetrieveWithCredContext implements credentials.Provider.
func (k *keys) RetrieveWithCredContext(ctx *credentials.CredContext) (credentials.Value, error) {
	if k.file != "" {
		if _, err := transport.SecretFile(k.file); err != nil {
			return credentials.Value{}, err
		}
		return k.found((&credentials.FileAWSCredentials{Filename: k.file, Profile: k.profile}).RetrieveWithCredContext(ctx))
	}
	if k.profile == "" {
		if v, err := (&credentials.EnvAWS{}).Retrieve(); err == nil && v.AccessKeyID != "" {
			return k.found(v, nil)
		}
	}
	return k.found((&credentials.FileAWSCredentials{Profile: k.profile}).RetrieveWithCredContext(ctx))
}

func (k *keys) found(v credentials.Value, err error) (credentials.Value, error) {
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return v, transport.WithHint(fmt.Errorf("%w: %w", errNoKeys, err), whereKeys)
	}
	if v.AccessKeyID == "" || v.SecretAccessKey == "" {
		return v, transport.WithHint(errNoKeys, whereKeys)
	}
	v.SignerType = credentials.SignatureV4
	return v, nil
}

// IsExpired implements credentials.Provider: files and environment may change.
func (k *keys) IsExpired() bool { return true }
