package main

import (
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// reads is what a policy can read of its input.
type reads struct {
	paths     [][]string // sorted, none a prefix of another; an empty path is the whole input
	widened   []widened
	cacheable bool
}

// widened names the line that made a path wider than the ref that is written there.
type widened struct {
	Path []string `json:"path"`
	File string   `json:"file"`
	Row  int      `json:"row"`
	Text string   `json:"text"`
}

// findReads lists every input ref of the compiled modules (imports resolved, nothing else), each cut at its first step
// that is not a literal string. It follows no variable and no function: a path can only be too short, never too long,
// so that two inputs that agree at these paths get one decision. `with` replaces input or data, so it ends caching.
func findReads(compiler *ast.Compiler, src *source) reads {
	found := reads{cacheable: true}
	for _, name := range sortedKeys(compiler.Modules) {
		module := compiler.Modules[name]
		ast.WalkWiths(module, func(*ast.With) bool {
			found.cacheable = false
			return false
		})
		walkRefs(module, func(ref ast.Ref, location *ast.Location) {
			if ref.HasPrefix(ast.InputRootRef) {
				found.note(ref, location, src)
			}
		})
	}
	found.paths = withoutCovered(found.paths)
	return found
}

func (r *reads) note(ref ast.Ref, location *ast.Location, src *source) {
	path := []string{}
	for _, step := range ref[1:] {
		name, literal := step.Value.(ast.String)
		if !literal {
			break
		}
		path = append(path, string(name))
	}
	r.paths = append(r.paths, path)
	if wider := len(path) < len(ref)-1 || len(path) == 0; wider {
		r.widen(path, location, src)
	}
}

func (r *reads) widen(path []string, location *ast.Location, src *source) {
	line := widened{Path: path}
	if location != nil {
		line.File, line.Row = location.File, location.Row
		if file := src.file(location.File); file != nil {
			line.Text = strings.TrimSpace(lineOf(file.data, location.Row))
		}
	}
	same := func(other widened) bool {
		return other.File == line.File && other.Row == line.Row && slices.Equal(other.Path, line.Path)
	}
	if !slices.ContainsFunc(r.widened, same) {
		r.widened = append(r.widened, line)
	}
}

// withoutCovered sorts paths and leaves out those that another one includes.
func withoutCovered(paths [][]string) [][]string {
	slices.SortFunc(paths, slices.Compare)
	kept := [][]string{}
	for _, path := range paths {
		if len(kept) > 0 {
			last := kept[len(kept)-1]
			if len(path) >= len(last) && slices.Equal(path[:len(last)], last) {
				continue
			}
		}
		kept = append(kept, path)
	}
	return kept
}

// facts says whether a decision can depend on what was remembered.
func (r *reads) facts() bool {
	return slices.ContainsFunc(r.paths, func(path []string) bool { return len(path) == 0 || path[0] == "facts" })
}
