package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/iotest"
)

func TestFramesComeOutAsTheyWentIn(t *testing.T) {
	var stream []byte
	want := []frame{{1, opHello, []byte("{}")}, {1 << 63, opDecide, bytes.Repeat([]byte("x"), 70_000)}, {3, opStats, []byte{}}}
	for _, f := range want {
		stream = appendFrame(stream, f.id, f.op, f.body[:len(f.body)/2], f.body[len(f.body)/2:])
	}
	for name, reader := range map[string]io.Reader{"whole": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream))} {
		buffered := bufio.NewReader(reader)
		for _, f := range want {
			got, err := readFrame(buffered)
			if err != nil || got.id != f.id || got.op != f.op || !bytes.Equal(got.body, f.body) {
				t.Fatalf("%s: got %d %d %d bytes, %v", name, got.id, got.op, len(got.body), err)
			}
		}
		if _, err := readFrame(buffered); !errors.Is(err, io.EOF) {
			t.Errorf("%s: the end is %v", name, err)
		}
	}
}

// A stream that is none of frames ends in an error, without memory for lengths that cannot be.
func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, 7, opLoad, []byte("{}")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0})
	f.Add([]byte{8, 0, 0, 0})
	f.Add([]byte{12, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, stream []byte) {
		reader := bufio.NewReader(bytes.NewReader(stream))
		for read := 0; ; {
			got, err := readFrame(reader)
			if err != nil {
				if read == len(stream) != errors.Is(err, io.EOF) {
					t.Fatalf("after %d of %d bytes: %v", read, len(stream), err)
				}
				return
			}
			read += frameHeaderBytes + len(got.body)
		}
	})
}

func FuzzParseAsk(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, askFixedBytes))
	f.Add(append(bytes.Repeat([]byte("a"), 64), 1, 0, 0, 0, 2, 0, 'm', 'e', '{', '}'))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, fail := parseAsk(frame{id: 1, op: opDecide, body: body})
		if fail != nil {
			return
		}
		if len(got.digest) != 64 || len(got.tenant)+len(got.input)+askFixedBytes != len(body) {
			t.Fatalf("%q was read as %+v", body, got)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("gone") }

func TestAnswersOfManyAreWrittenWhole(t *testing.T) {
	ours, theirs := net.Pipe()
	writer := &frameWriter{out: theirs}
	var senders sync.WaitGroup
	for id := range uint64(200) {
		senders.Go(func() { writer.send(id, statusOK, bytes.Repeat([]byte{byte(id)}, int(id))) })
	}
	seen := map[uint64]bool{}
	reader := bufio.NewReader(ours)
	for range 200 {
		got, err := readFrame(reader)
		if err != nil || len(got.body) != int(got.id) || bytes.Count(got.body, []byte{byte(got.id)}) != len(got.body) {
			t.Fatalf("frame %d of %d bytes: %v", got.id, len(got.body), err)
		}
		seen[got.id] = true
	}
	senders.Wait()
	if len(seen) != 200 {
		t.Errorf("%d answers", len(seen))
	}
	broken := &frameWriter{out: brokenWriter{}}
	broken.send(1, statusOK) // must come back
	broken.send(2, statusOK)
	if broken.err == nil || len(broken.pending) > 0 {
		t.Errorf("a broken connection keeps %d bytes", len(broken.pending))
	}
}

// conversation asks a server over a real connection.
type conversation struct {
	t    *testing.T
	conn net.Conn
	read *bufio.Reader
	done chan error
	with *server
}

func converse(t *testing.T) *conversation {
	ours, theirs := net.Pipe()
	c := &conversation{t: t, conn: ours, read: bufio.NewReader(ours), done: make(chan error, 1), with: newServer(theirs)}
	go func() { c.done <- c.with.serve() }()
	t.Cleanup(func() { _ = ours.Close() })
	return c
}

func (c *conversation) ask(op byte, body []byte) frame {
	c.t.Helper()
	if _, err := c.conn.Write(appendFrame(nil, 9, op, body)); err != nil {
		c.t.Fatal(err)
	}
	got, err := readFrame(c.read)
	if err != nil || got.id != 9 {
		c.t.Fatalf("answer %d: %v", got.id, err)
	}
	return got
}

func TestAServerGreetsDecidesAndEndsWithItsConnection(t *testing.T) {
	c := converse(t)
	var greeting helloAnswer
	if hello := c.ask(opHello, []byte("{}")); json.Unmarshal(hello.body, &greeting) != nil || greeting.Protocol != 1 || len(greeting.Capabilities) != 64 {
		t.Fatalf("hello: %s", hello.body)
	}
	path := constitutionAt(t, nil)
	var loaded summary
	if answer := c.ask(opLoad, jsonOf(t, request{Path: path})); answer.op != statusOK || json.Unmarshal(answer.body, &loaded) != nil {
		t.Fatalf("load: %s", answer.body)
	}
	body := append([]byte(loaded.Digest), 0, 0, 0, 0, 4, 0)
	binary.LittleEndian.PutUint32(body[64:], 2_000_000)
	body = append(body, `acme{"message": {"id": "m"}}`...)
	if answer := c.ask(opDecide, body); answer.op != statusOK || !bytes.Contains(answer.body[4:], []byte(`"allow":true`)) {
		t.Fatalf("decide: %s", answer.body)
	}
	for name, question := range map[string]struct {
		op   byte
		body []byte
	}{
		"unknown op":      {99, nil},
		"body no JSON":    {opLoad, []byte("{")},
		"short decide":    {opDecide, []byte("x")},
		"nothing there":   {opLoad, []byte(`{"path": "/nonexistent"}`)},
		"unknown digest":  {opDecide, append(bytes.Repeat([]byte("0"), 64), 0xff, 0xff, 0, 0, 0, 0)},
		"input no JSON":   {opDecide, append(append([]byte(loaded.Digest), 0xff, 0xff, 0xff, 0, 0, 0), '{')},
		"other digest":    {opLoad, jsonOf(t, request{Path: path, Digest: "00"})},
		"explain nothing": {opExplain, []byte(`{"digest": "00", "input": {}}`)},
	} {
		var fail failure
		if answer := c.ask(question.op, question.body); answer.op != statusError || json.Unmarshal(answer.body, &fail) != nil || fail.Code == "" {
			t.Errorf("%s: %d %s", name, answer.op, answer.body)
		}
	}
	_ = c.conn.Close()
	if err := <-c.done; err != nil {
		t.Errorf("the end of the connection is %v", err)
	}
}

func TestAServerWantsToBeGreeted(t *testing.T) {
	c := converse(t)
	go func() { _, _ = c.conn.Write(appendFrame(nil, 1, opStats)) }()
	if err := <-c.done; err == nil {
		t.Error("it answers a stranger")
	}
}

func jsonOf(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
