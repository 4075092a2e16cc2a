package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"sort"
	"strings"
)

// Limits of a constitution (contract §3): beyond them it is invalid.
const (
	filesMax         = 10_000
	unpackedBytesMax = 64 << 20
	// What a tar may take around its files: headers, padding, long names, the end.
	tarOverheadBytesMax = filesMax*4096 + 1<<20
	// Folders count for little, but not for nothing.
	tarEntriesMax = 2 * filesMax
)

const (
	kindFolder = "folder"
	kindBundle = "bundle"
)

var pathPattern = regexp.MustCompile(`^[A-Za-z0-9._/-]+$`)

// source is a constitution's files as bytes, sorted by path, and their hash: nothing is read twice.
type source struct {
	kind   string
	digest string
	files  []sourceFile
}

type sourceFile struct {
	path string
	data []byte
}

func (s *source) file(name string) *sourceFile {
	i := sort.Search(len(s.files), func(i int) bool { return s.files[i].path >= name })
	if i < len(s.files) && s.files[i].path == name {
		return &s.files[i]
	}
	return nil
}

// readSource reads a folder or a bundle. The problems are those for which no digest can be given; an error means that
// there is nothing to read.
func readSource(name string) (*source, []problem, error) {
	return read(name, &collector{seen: map[string]bool{}})
}

// readDraft is readSource for a folder that is being written: it leaves out what an editor keeps there meanwhile.
func readDraft(name string) (*source, []problem, error) {
	return read(name, &collector{seen: map[string]bool{}, draft: true})
}

func read(name string, collected *collector) (*source, []problem, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, nil, &failure{Code: "not_found", Message: err.Error()}
	}
	kind := kindBundle
	switch {
	case info.IsDir():
		kind = kindFolder
		err = collected.folder(name)
	case info.Mode().IsRegular():
		err = collected.bundle(name)
	default:
		return nil, nil, &failure{Code: "not_found", Message: name + " is neither a folder nor a file"}
	}
	if err != nil && !errors.Is(err, errTooMuch) {
		return nil, nil, &failure{Code: "unreadable", Message: err.Error()}
	}
	files := collected.files
	slices.SortFunc(files, func(a, b sourceFile) int { return strings.Compare(a.path, b.path) })
	collected.fileAndFolder(files)
	if len(files) == 0 && len(collected.problems) == 0 {
		collected.refuse("", "there is no file in it", "give a folder or bundle.tar.gz with .manifest and bus/main.rego")
	}
	if len(collected.problems) > 0 {
		return nil, collected.problems, nil
	}
	return &source{kind: kind, digest: digestOf(files), files: files}, nil, nil
}

// digestOf is the constitutional hash (contract §3): sha256 of what sha256sum prints for each file but the signatures.
func digestOf(files []sourceFile) string {
	sum := sha256.New()
	for _, file := range files {
		if file.path == signaturesFile {
			continue
		}
		one := sha256.Sum256(file.data)
		fmt.Fprintf(sum, "%s  %s\n", hex.EncodeToString(one[:]), file.path)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// errTooMuch ends reading; its problem has been noted.
var errTooMuch = errors.New("too much")

// collector gathers files within the limits, and what is wrong with those that it does not take.
type collector struct {
	files    []sourceFile
	bytes    int64
	seen     map[string]bool
	draft    bool // leave out editors' files
	problems []problem
}

func (c *collector) refuse(file, message, hint string) {
	c.problems = append(c.problems, problem{Reason: reasonInvalid, Message: message, File: file, Hint: hint})
}

// admit says whether a file of this name may be read.
func (c *collector) admit(name string) (bool, error) {
	switch {
	case !pathPattern.MatchString(name) && isEditorFile(name):
		c.refuse(name, editorMessage, editorHint)
		return false, nil
	case !pathPattern.MatchString(name):
		c.refuse(name, fmt.Sprintf("the path %q has characters that a constitution's paths cannot have", name),
			"use letters, digits, '.', '_', '-' and '/' only")
		return false, nil
	case path.IsAbs(name) || path.Clean(name) != name || name == ".." || strings.HasPrefix(name, "../"):
		c.refuse(name, fmt.Sprintf("the path %q leaves the folder or is not plain", name),
			"give paths relative to the constitution, without '..', '.', '//' or a leading '/'")
		return false, nil
	case c.seen[name]:
		c.refuse(name, fmt.Sprintf("the name %q is there twice", name), "keep one of the two")
		return false, nil
	case len(c.files) >= filesMax:
		c.refuse(name, fmt.Sprintf("more than %d files", filesMax), "split the data, or remove what is not needed")
		return false, errTooMuch
	}
	c.seen[name] = true
	return true, nil
}

// take reads a file, or stops when the constitution grows beyond its limit.
func (c *collector) take(name string, content io.Reader) error {
	left := unpackedBytesMax - c.bytes
	data, err := io.ReadAll(io.LimitReader(content, left+1))
	if err != nil {
		return err
	}
	if int64(len(data)) > left {
		c.refuse(name, fmt.Sprintf("more than %d MiB unpacked", unpackedBytesMax>>20), "keep large data out of the policy")
		return errTooMuch
	}
	c.bytes += int64(len(data))
	c.files = append(c.files, sourceFile{path: name, data: data})
	return nil
}

func (c *collector) refuseLink(name string) {
	if isEditorFile(name) { // Emacs locks a file with a link
		c.refuse(name, editorMessage, editorHint)
		return
	}
	c.refuse(name, "it is a link or a special file", "put a copy of the file in its place")
}

// folder reads every file below a folder; os.Root keeps it from being led outside while it reads.
func (c *collector) folder(name string) error {
	root, err := os.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		if c.draft && isEditorFile(name) {
			return nil
		}
		if !entry.Type().IsRegular() {
			c.refuseLink(name)
			return nil
		}
		if ok, err := c.admit(name); !ok {
			return err
		}
		file, err := root.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		return c.take(name, file)
	})
}

// bundle reads a tar.gz. Nothing may follow the tar's end but zeros, so that no tool can see other files in it.
func (c *collector) bundle(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	unzipped, err := gzip.NewReader(file)
	if err != nil {
		c.refuse("", "it is not a tar.gz: "+err.Error(), "build one with `eab policy build DIR -o BUNDLE`")
		return nil
	}
	bounded := &io.LimitedReader{R: unzipped, N: unpackedBytesMax + tarOverheadBytesMax}
	err = c.entries(tar.NewReader(bounded))
	if err == nil {
		err = onlyZeros(bounded)
	}
	switch {
	case err == nil || errors.Is(err, errTooMuch):
		return err
	case bounded.N <= 0:
		c.refuse("", fmt.Sprintf("more than %d MiB unpacked", unpackedBytesMax>>20), "keep large data out of the policy")
	default:
		c.refuse("", "the bundle cannot be read: "+err.Error(), "build it again with `eab policy build DIR -o BUNDLE`")
	}
	return nil
}

func (c *collector) entries(reader *tar.Reader) error {
	for count := 0; ; count++ {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if count >= tarEntriesMax {
			c.refuse(header.Name, fmt.Sprintf("more than %d files", filesMax), "remove what is not needed")
			return errTooMuch
		}
		name := strings.TrimPrefix(header.Name, "./")
		switch header.Typeflag {
		case tar.TypeDir:
			continue
		case tar.TypeReg:
		default:
			c.refuseLink(name)
			continue
		}
		ok, err := c.admit(name)
		if ok {
			err = c.take(name, reader)
		}
		if err != nil {
			return err
		}
	}
}

func onlyZeros(reader io.Reader) error {
	buffer := make([]byte, 32<<10)
	for {
		n, err := reader.Read(buffer)
		for _, b := range buffer[:n] {
			if b != 0 {
				return errors.New("something follows the end of the tar")
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fileAndFolder refuses a tar in which one name is a file and a folder too: it could not be unpacked.
func (c *collector) fileAndFolder(sorted []sourceFile) {
	for _, file := range sorted {
		for parent := path.Dir(file.path); parent != "."; parent = path.Dir(parent) {
			if c.seen[parent] {
				c.refuse(parent, fmt.Sprintf("%q is a file and a folder", parent), "rename one of the two")
			}
		}
	}
}
