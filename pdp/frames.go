package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// A frame is, little-endian: u32 length of what follows, u64 id, u8 op, body. Questions are pipelined; an answer has
// its question's id, comes in any order, and begins with statusOK or statusError in the place of the op.
const (
	frameBytesMax    = 16 << 20
	frameHeaderBytes = 13
	frameFixedBytes  = 9 // id and op, counted in the length

	statusOK    = 0
	statusError = 1
)

const (
	opHello = iota + 1
	opLoad
	opDecide
	opCheck
	opTest
	opExplain
	opFormat
	opStats
	opDrop
	opPack
	opHash
	opClaims
	opSign
	opVerify
	opMask
	opCompare
)

var errFrameSize = errors.New("a frame with an impossible length")

type frame struct {
	id   uint64
	op   byte
	body []byte
}

// readFrame reads one frame. Returns io.EOF when the stream ends between two frames.
func readFrame(reader *bufio.Reader) (frame, error) {
	var header [frameHeaderBytes]byte
	if _, err := io.ReadFull(reader, header[:4]); err != nil {
		return frame{}, err
	}
	length := binary.LittleEndian.Uint32(header[:4])
	if length < frameFixedBytes || length > frameBytesMax {
		return frame{}, fmt.Errorf("%w: %d", errFrameSize, length)
	}
	if _, err := io.ReadFull(reader, header[4:]); err != nil {
		return frame{}, unexpected(err)
	}
	body := make([]byte, length-frameFixedBytes)
	if _, err := io.ReadFull(reader, body); err != nil {
		return frame{}, unexpected(err)
	}
	return frame{id: binary.LittleEndian.Uint64(header[4:12]), op: header[12], body: body}, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendFrame adds a frame whose body is the parts one after another.
func appendFrame(buffer []byte, id uint64, op byte, parts ...[]byte) []byte {
	length := frameFixedBytes
	for _, part := range parts {
		length += len(part)
	}
	buffer = binary.LittleEndian.AppendUint32(buffer, uint32(length))
	buffer = binary.LittleEndian.AppendUint64(buffer, id)
	buffer = append(buffer, op)
	for _, part := range parts {
		buffer = append(buffer, part...)
	}
	return buffer
}

// failure is the body of an error answer.
type failure struct {
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Details []problem `json:"details,omitempty"`
}

func (f *failure) Error() string { return f.Code + ": " + f.Message }

// frameWriter sends answers. What is handed in while a write is under way leaves together in the next one.
type frameWriter struct {
	out io.Writer

	mu      sync.Mutex
	pending []byte
	spare   []byte
	writing bool
	err     error
}

func (w *frameWriter) send(id uint64, status byte, parts ...[]byte) {
	w.mu.Lock()
	w.pending = appendFrame(w.pending, id, status, parts...)
	if w.writing {
		w.mu.Unlock()
		return
	}
	w.writing = true
	for len(w.pending) > 0 && w.err == nil {
		batch := w.pending
		w.pending = w.spare[:0]
		w.mu.Unlock()
		_, err := w.out.Write(batch)
		w.mu.Lock()
		w.err = err
		w.spare = batch
	}
	if w.err != nil {
		w.pending = nil
	}
	w.writing = false
	w.mu.Unlock()
}

func (w *frameWriter) sendJSON(id uint64, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		w.sendFailure(id, &failure{Code: "internal", Message: err.Error()})
		return
	}
	if len(body)+frameFixedBytes > frameBytesMax {
		w.sendFailure(id, &failure{Code: "too_large", Message: "the answer is larger than a frame"})
		return
	}
	w.send(id, statusOK, body)
}

func (w *frameWriter) sendFailure(id uint64, fail *failure) {
	w.send(id, statusError, fail.text())
}

func (f *failure) text() []byte {
	body, err := json.Marshal(f)
	if err != nil || len(body)+frameFixedBytes > frameBytesMax {
		return []byte(`{"code":"internal","message":"an error that cannot be written down"}`)
	}
	return body
}
