package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

const (
	jsonDepthMax = 512
	markHint     = "save it as UTF-8 without a byte order mark (BOM)"
)

var byteOrderMark = []byte("\ufeff")

// jsonError is where and why a JSON file was not taken.
type jsonError struct {
	message string
	offset  int64
}

func (e *jsonError) Error() string { return e.message }

// strictJSON reads one JSON value, numbers as written. Unlike encoding/json it refuses a key that is there twice, so
// that no two readers can see different documents in the same bytes.
func strictJSON(data []byte) (any, error) {
	if bytes.HasPrefix(data, byteOrderMark) {
		return nil, &jsonError{message: "it begins with a byte order mark"}
	}
	if !utf8.Valid(data) {
		return nil, &jsonError{message: "it is not UTF-8"}
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	value, err := strictValue(decoder, 0)
	if err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, &jsonError{"something follows the JSON value", decoder.InputOffset()}
	}
	return value, nil
}

func strictValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, strictError(decoder, err)
	}
	if depth > jsonDepthMax {
		return nil, &jsonError{fmt.Sprintf("it is nested deeper than %d", jsonDepthMax), decoder.InputOffset()}
	}
	switch token {
	case json.Delim('{'):
		return strictObject(decoder, depth)
	case json.Delim('['):
		return strictArray(decoder, depth)
	default:
		return token, nil
	}
}

func strictObject(decoder *json.Decoder, depth int) (any, error) {
	object := map[string]any{}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, strictError(decoder, err)
		}
		key := token.(string) // the decoder allows nothing else here
		if _, twice := object[key]; twice {
			return nil, &jsonError{fmt.Sprintf("the key %q is there twice", key), decoder.InputOffset()}
		}
		if object[key], err = strictValue(decoder, depth+1); err != nil {
			return nil, err
		}
	}
	return object, strictEnd(decoder)
}

func strictArray(decoder *json.Decoder, depth int) (any, error) {
	array := []any{}
	for decoder.More() {
		value, err := strictValue(decoder, depth+1)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
	return array, strictEnd(decoder)
}

func strictEnd(decoder *json.Decoder) error {
	if _, err := decoder.Token(); err != nil {
		return strictError(decoder, err)
	}
	return nil
}

func strictError(decoder *json.Decoder, err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return &jsonError{"it is not JSON: " + err.Error(), syntax.Offset}
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return &jsonError{"the JSON ends too early", decoder.InputOffset()}
	default:
		return &jsonError{"it is not JSON: " + err.Error(), decoder.InputOffset()}
	}
}

// json reads a JSON file of the constitution; a problem is noted with its line.
func (r *report) json(file *sourceFile) (any, bool) {
	value, err := strictJSON(file.data)
	if err == nil {
		return value, true
	}
	p := problem{Message: err.Error(), File: file.path, Row: 1, Col: 1, Hint: "write one JSON value, each key once, in UTF-8"}
	if bytes.HasPrefix(file.data, byteOrderMark) {
		p.Hint = markHint
	}
	var at *jsonError
	if errors.As(err, &at) {
		before := file.data[:min(int(at.offset), len(file.data))]
		p.Row = 1 + bytes.Count(before, []byte("\n"))
		p.Col = max(1, len(before)-bytes.LastIndexByte(before, '\n')-1)
	}
	r.add(p)
	return nil, false
}
