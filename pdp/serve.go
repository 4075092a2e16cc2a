package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/open-policy-agent/opa/v1/version"
)

const (
	protocolVersion = 1
	readBufferBytes = 256 << 10
	// The author's questions (check, test, explain, ...) that may run at once in one process.
	authoringMax = 2
)

// server answers the questions of one connection.
type server struct {
	conn      net.Conn
	out       *frameWriter
	schedule  *schedule
	authoring chan struct{} // a place for each of the author's questions

	mu     sync.RWMutex
	loaded map[string]*constitution
	pairs  map[[2]string]*pair // by the digests of both
}

func newServer(conn net.Conn) *server {
	s := &server{
		conn:      conn,
		out:       &frameWriter{out: conn},
		authoring: make(chan struct{}, authoringMax),
		loaded:    map[string]*constitution{},
		pairs:     map[[2]string]*pair{},
	}
	s.schedule = newSchedule(max(2, runtime.NumCPU()), s.decide)
	return s
}

// serve reads frames until the connection closes.
func (s *server) serve() error {
	reader := bufio.NewReaderSize(s.conn, readBufferBytes)
	first, err := readFrame(reader)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	if first.op != opHello {
		return fmt.Errorf("the first frame has op %d instead of hello", first.op)
	}
	var greeting struct {
		Workers int `json:"workers"` // how many the bus has, this one included
	}
	if json.Unmarshal(first.body, &greeting) == nil {
		theCores.share(greeting.Workers)
	}
	s.out.sendJSON(first.id, s.hello())
	for {
		question, err := readFrame(reader)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.take(question)
	}
}

func (s *server) take(question frame) {
	if question.op == opDecide || question.op == opCompare {
		ask, fail := parseAsk(question)
		if fail == nil {
			fail = s.schedule.add(ask)
		}
		if fail != nil {
			s.out.sendFailure(question.id, fail)
		}
		return
	}
	if question.op == opStats { // also says that the process is alive, so it waits for nothing else
		s.out.sendJSON(question.id, s.stats())
		return
	}
	go s.author(question)
}

// author answers everything but decide, compare and stats, a few at a time, beside the evaluators.
func (s *server) author(question frame) {
	s.authoring <- struct{}{}
	defer func() { <-s.authoring }()
	theCores.hold()
	defer theCores.release()
	defer func() {
		if broken := recover(); broken != nil {
			fmt.Fprintf(os.Stderr, "eab-pdp: op %d: %v\n%s", question.op, broken, debug.Stack())
			s.out.sendFailure(question.id, &failure{Code: "internal", Message: fmt.Sprint(broken)})
		}
	}()
	answer, err := s.answer(question)
	var fail *failure
	switch {
	case errors.As(err, &fail):
		s.out.sendFailure(question.id, fail)
	case err != nil:
		s.out.sendFailure(question.id, &failure{Code: "failed", Message: err.Error()})
	default:
		s.out.sendJSON(question.id, answer)
	}
}

// request is the JSON body of every question but decide and compare.
type request struct {
	Path     string          `json:"path"`
	Digest   string          `json:"digest"`
	Out      string          `json:"out"`
	Source   string          `json:"source"`
	Token    string          `json:"token"`
	Keys     []string        `json:"keys"`
	Coverage bool            `json:"coverage"`
	Run      string          `json:"run"`
	Warnings bool            `json:"warnings"`
	Draft    bool            `json:"draft"`      // the folder is being written: leave out editors' files
	Timeout  int64           `json:"timeout_us"` // what a live decision may take
	Input    json.RawMessage `json:"input"`
}

func (s *server) answer(question frame) (any, error) {
	var r request
	if len(question.body) > 0 {
		if err := json.Unmarshal(question.body, &r); err != nil {
			return nil, &failure{Code: "malformed", Message: err.Error()}
		}
	}
	switch question.op {
	case opLoad:
		return s.load(r)
	case opCheck:
		return check(r)
	case opTest:
		return test(r)
	case opExplain:
		return s.explain(r)
	case opFormat:
		return formatSource(r)
	case opDrop:
		s.drop(r.Digest)
		return struct{}{}, nil
	case opPack:
		return pack(r.Path, r.Out)
	case opHash:
		return hash(r.Path)
	case opClaims:
		return signingClaims(r.Path)
	case opSign:
		return sign(r.Path, r.Out, r.Token)
	case opVerify:
		return verify(r.Path, r.Keys)
	case opMask:
		return s.loadMask(r)
	}
	return nil, &failure{Code: "malformed", Message: fmt.Sprintf("there is no op %d", question.op)}
}

type helloAnswer struct {
	Protocol     int    `json:"protocol"`
	OPA          string `json:"opa"`
	Go           string `json:"go"`
	Capabilities string `json:"capabilities"`
	PID          int    `json:"pid"`
}

func (s *server) hello() helloAnswer {
	return helloAnswer{
		Protocol:     protocolVersion,
		OPA:          version.Version,
		Go:           runtime.Version(),
		Capabilities: capabilitiesDigest(),
		PID:          os.Getpid(),
	}
}

// load compiles a constitution for deciding and keeps it under its digest. Its tests are not run here: see check.
func (s *server) load(r request) (any, error) {
	src, problems, err := readSource(r.Path)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	if r.Digest != "" && r.Digest != src.digest {
		return nil, &failure{Code: "digest_mismatch", Message: "the bytes have the digest " + src.digest}
	}
	if known := s.find(src.digest); known != nil {
		return known.summary(src), nil
	}
	built, problems := compileConstitution(src)
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	s.mu.Lock()
	s.loaded[src.digest] = built
	s.mu.Unlock()
	return built.summary(src), nil
}

func (s *server) find(digest string) *constitution {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.loaded[digest]
}

func (s *server) drop(digest string) {
	s.mu.Lock()
	delete(s.loaded, digest)
	maps.DeleteFunc(s.pairs, func(digests [2]string, _ *pair) bool { return slices.Contains(digests[:], digest) })
	s.mu.Unlock()
}

type statsAnswer struct {
	MemoryBytes uint64   `json:"memory_bytes"`
	Goroutines  int      `json:"goroutines"`
	Decisions   uint64   `json:"decisions"`
	Loaded      []string `json:"loaded"`
	Running     int      `json:"running"`
	Queued      int      `json:"queued"`
}

func (s *server) stats() statsAnswer {
	answer := statsAnswer{MemoryBytes: memoryBytes(), Goroutines: runtime.NumGoroutine()}
	answer.Decisions, answer.Running, answer.Queued = s.schedule.counts()
	s.mu.RLock()
	defer s.mu.RUnlock()
	answer.Loaded = sortedKeys(s.loaded)
	return answer
}
