// Command outside checks what the log hands out with golang.org/x/mod/sumdb, which knows nothing of this software, and
// reads and writes letters of the bus (letters.go).
//
// It answers a line of JSON for each line of JSON that it is asked: {"ok": "..."} or {"error": "..."}.
// Not here: any judgment of what a record says.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	tileHeight  = 8
	lineBytes   = 1 << 24
	proofHeader = "c2sp.org/tlog-proof@v1\n"
)

type question struct {
	Op         string `json:"op"` // checkpoint, proof, consistency, tiles; canonical, ticket, join, envelope
	Vkey       string `json:"vkey"`
	Checkpoint string `json:"checkpoint"` // the note; of consistency, the old one
	Proof      string `json:"proof"`
	Folder     string `json:"folder"`
	Text       string `json:"text"` // a payload, a letter, or what an envelope is to say
	Name       string `json:"name"` // of an agent, <tenant>/<agent>
	Seed       string `json:"seed"` // its private key, in hex
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, lineBytes)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked question
		answer := map[string]string{}
		err := json.Unmarshal(lines.Bytes(), &asked)
		if err == nil {
			answer["ok"], err = check(asked)
		}
		if err != nil {
			answer = map[string]string{"error": err.Error()}
		}
		if err := answers.Encode(answer); err != nil {
			os.Exit(1)
		}
	}
}

func check(asked question) (string, error) {
	switch asked.Op {
	case "checkpoint":
		tree, err := openCheckpoint(asked.Checkpoint, asked.Vkey)
		return fmt.Sprintf("%d %s", tree.N, tree.Hash), err
	case "proof":
		return checkProof(asked.Proof, asked.Vkey)
	case "consistency":
		return "", checkConsistency(asked.Checkpoint, asked.Proof, asked.Vkey)
	case "tiles":
		tree, err := checkTiles(asked.Folder, asked.Vkey)
		return fmt.Sprintf("%d %s", tree.N, tree.Hash), err
	case "canonical":
		return canonicalPayload(asked.Text)
	case "ticket":
		return checkTicket(asked.Text, asked.Vkey)
	case "join":
		return join(asked.Text, asked.Vkey, asked.Name, asked.Seed)
	case "envelope":
		return signEnvelope(asked.Text, asked.Name, asked.Seed)
	}
	return "", errors.New("no such question")
}

// openCheckpoint reads a checkpoint that the key must have signed, as the log of its name.
func openCheckpoint(text, vkey string) (tlog.Tree, error) {
	verifier, err := note.NewVerifier(strings.TrimSpace(vkey))
	if err != nil {
		return tlog.Tree{}, err
	}
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	if err != nil {
		return tlog.Tree{}, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return tlog.Tree{}, errors.New("not three lines under the name of the key")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tlog.Tree{}, err
	}
	hash, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: hash}, err
}

// splitProof parts the lines before a checkpoint from it, and reads the hashes among them.
func splitProof(text string) (head []string, hashes []tlog.Hash, checkpoint string, err error) {
	before, checkpoint, found := strings.Cut(text, "\n\n")
	if !found {
		return nil, nil, "", errors.New("no checkpoint behind the proof")
	}
	for _, line := range strings.Split(before, "\n") {
		if strings.Contains(line, " ") {
			head = append(head, line)
			continue
		}
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, nil, "", err
		}
		hashes = append(hashes, hash)
	}
	return head, hashes, checkpoint, nil
}

// checkProof checks a C2SP tlog-proof whose extra data is the record, and answers the record.
func checkProof(text, vkey string) (string, error) {
	rest, found := strings.CutPrefix(text, proofHeader)
	if !found {
		return "", errors.New("not a tlog-proof")
	}
	head, hashes, checkpoint, err := splitProof(rest)
	if err != nil {
		return "", err
	}
	var record []byte
	var index int64
	if _, err := fmt.Sscanf(strings.Join(head, "\n"), "extra %s\nindex %d", new(string), &index); err != nil {
		return "", err
	}
	if record, err = base64.StdEncoding.DecodeString(strings.TrimPrefix(head[0], "extra ")); err != nil {
		return "", err
	}
	tree, err := openCheckpoint(checkpoint, vkey)
	if err != nil {
		return "", err
	}
	return string(record), tlog.CheckRecord(hashes, tree.N, tree.Hash, index, tlog.RecordHash(record))
}

func checkConsistency(oldCheckpoint, text, vkey string) error {
	older, err := openCheckpoint(oldCheckpoint, vkey)
	if err != nil {
		return err
	}
	head, hashes, checkpoint, err := splitProof(text)
	if err != nil {
		return err
	}
	if len(head) != 1 || head[0] != fmt.Sprintf("old %d", older.N) {
		return errors.New("not a proof from this old checkpoint")
	}
	tree, err := openCheckpoint(checkpoint, vkey)
	if err != nil {
		return err
	}
	return tlog.CheckTree(hashes, tree.N, tree.Hash, older.N, older.Hash)
}

// A folder of tiles, read as a client of a log reads them: tlog.TileHashReader checks each against the tree.
type folder string

func (f folder) Height() int { return tileHeight }

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

func (f folder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var data [][]byte
	for _, tile := range tiles {
		// x/mod names the height first, which C2SP tlog-tiles leaves out.
		name := "tile/" + strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/", tileHeight))
		read, err := os.ReadFile(filepath.Join(string(f), name))
		if err != nil {
			return nil, err
		}
		if len(read) != tile.W*tlog.HashSize {
			return nil, fmt.Errorf("%s has %d bytes", name, len(read))
		}
		data = append(data, read)
	}
	return data, nil
}

// checkTiles reads a log from start to end: every record against its hash, every hash against the signed root.
func checkTiles(place, vkey string) (tlog.Tree, error) {
	text, err := os.ReadFile(filepath.Join(place, "checkpoint"))
	if err != nil {
		return tlog.Tree{}, err
	}
	tree, err := openCheckpoint(string(text), vkey)
	if err != nil {
		return tlog.Tree{}, err
	}
	hashes := tlog.TileHashReader(tree, folder(place))
	for first := int64(0); first < tree.N; first += 1 << tileHeight {
		width := min(tree.N-first, 1<<tileHeight)
		indexes := make([]int64, width)
		for i := range indexes {
			indexes[i] = tlog.StoredHashIndex(0, first+int64(i))
		}
		leaves, err := hashes.ReadHashes(indexes)
		if err != nil {
			return tree, err
		}
		if err := checkBundle(place, first>>tileHeight, leaves); err != nil {
			return tree, err
		}
	}
	return tree, nil
}

// checkBundle checks that the records of one tile are those that its hashes stand for.
func checkBundle(place string, number int64, leaves []tlog.Hash) error {
	tile := tlog.Tile{H: tileHeight, L: -1, N: number, W: len(leaves)} // level -1 is what x/mod calls the data
	name := "tile/entries/" + strings.TrimPrefix(tile.Path(), fmt.Sprintf("tile/%d/data/", tileHeight))
	rest, err := os.ReadFile(filepath.Join(place, name))
	if err != nil {
		return err
	}
	for _, leaf := range leaves {
		if len(rest) < 2 || len(rest) < 2+int(binary.BigEndian.Uint16(rest)) {
			return fmt.Errorf("%s breaks off", name)
		}
		end := 2 + int(binary.BigEndian.Uint16(rest))
		if tlog.RecordHash(rest[2:end]) != leaf {
			return fmt.Errorf("%s has a record that is not the signed one", name)
		}
		rest = rest[end:]
	}
	if len(rest) > 0 {
		return fmt.Errorf("%s has more records than its tile", name)
	}
	return nil
}
