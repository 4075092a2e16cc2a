package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"time"
)

type packAnswer struct {
	Digest string `json:"digest"`
	Bytes  int    `json:"bytes"`
	Source string `json:"source"`
}

// pack writes the bundle of a folder or bundle: its bytes as they are, sorted, without time, owner or mode of their
// own, so that the same constitution is the same file everywhere.
func pack(from, to string) (any, error) {
	src, err := packable(from)
	if err != nil {
		return nil, err
	}
	packed, err := tarOf(src)
	if err != nil {
		return nil, err
	}
	if err := writeWhole(to, packed); err != nil {
		return nil, err
	}
	return packAnswer{Digest: src.digest, Bytes: len(packed), Source: src.kind}, nil
}

func tarOf(src *source) ([]byte, error) {
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out) // no name and no time in its header
	archive := tar.NewWriter(zipped)
	for _, file := range src.files {
		header := &tar.Header{
			Typeflag: tar.TypeReg,
			Name:     file.path,
			Size:     int64(len(file.data)),
			Mode:     0o644,
			ModTime:  time.Unix(0, 0).UTC(),
		}
		if err := archive.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := archive.Write(file.data); err != nil {
			return nil, err
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	err := zipped.Close()
	return out.Bytes(), err
}

// writeWhole leaves the whole file, on disk, or none.
func writeWhole(name string, data []byte) error {
	part, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*.part")
	if err != nil {
		return err
	}
	_, err = part.Write(data)
	if err == nil {
		err = part.Chmod(0o644)
	}
	if err == nil {
		err = part.Sync()
	}
	if closed := part.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(part.Name(), name)
	}
	if err != nil {
		_ = os.Remove(part.Name())
	}
	return err
}

type hashAnswer struct {
	Digest string `json:"digest"`
	Files  int    `json:"files"`
}

// hash answers for any folder or bundle whose files can be read and named, whether or not it is a valid constitution.
func hash(from string) (any, error) {
	src, problems, err := readSource(from)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	return hashAnswer{Digest: src.digest, Files: len(src.files)}, nil
}
