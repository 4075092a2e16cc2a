package main

import (
	"path"
	"regexp"
)

// editorFile finds what editors put beside the file that is being written, for as long as it is open: swap and lock
// files, backups, and what is tried before a file is replaced (Vim, Emacs, Kate, JetBrains). cli/policy_test.py knows
// the same names.
var editorFile = regexp.MustCompile(`^(\..*\.sw[a-z]|\.#.*|#.*#|.*~|4913|\..*\.kate-swp|.*___jb_(tmp|old)___)$`)

func isEditorFile(name string) bool { return editorFile.MatchString(path.Base(name)) }

const (
	editorMessage = "it looks like an editor's own file, and does not belong here"
	editorHint    = "close the editor and delete what it left, or have it keep such files elsewhere (Vim: `set directory=~/.vim/swap//`)"
)
