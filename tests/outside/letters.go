// Letters of the bus, as somebody writes and reads them who has docs/reference/envelope.md and no code of ours.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	ticketType    = "application/vnd.eab.ticket+json"
	challengeType = "application/vnd.eab.challenge+json"
	joinType      = "application/vnd.eab.join+json"
	envelopeType  = "application/vnd.eab.envelope+json"
	depthMax      = 64
	integerMax    = 1<<53 - 1
)

// --- canonical JSON: RFC 8785, except that a float with an integral value keeps its .0 ---

// readJSON reads one document: a map, []any, string, json.Number, bool or nil. A key that stands twice is an error.
func readJSON(text string) (any, error) {
	if !utf8.ValidString(text) {
		return nil, errors.New("not UTF-8")
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	value, err := readValue(decoder, 0)
	if err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, errors.New("something follows the document")
	}
	return value, nil
}

func readValue(decoder *json.Decoder, depth int) (any, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	delim, nested := token.(json.Delim)
	if !nested {
		return token, nil
	}
	if depth++; depth > depthMax+2 { // a payload stands two levels down in a letter
		return nil, errors.New("too deep")
	}
	if delim == '[' {
		list := []any{}
		for decoder.More() {
			item, err := readValue(decoder, depth)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		_, err = decoder.Token()
		return list, err
	}
	object := map[string]any{}
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return nil, err
		}
		if _, twice := object[key.(string)]; twice {
			return nil, fmt.Errorf("the key %q stands twice", key)
		}
		if object[key.(string)], err = readValue(decoder, depth); err != nil {
			return nil, err
		}
	}
	_, err = decoder.Token()
	return object, err
}

// canonicalPayload answers the canonical form of a payload: an object, at most 64 deep.
func canonicalPayload(text string) (string, error) {
	value, err := readJSON(text)
	if err != nil {
		return "", err
	}
	if _, object := value.(map[string]any); !object {
		return "", errors.New("not an object")
	}
	// encoding/json puts U+FFFD in the place of a lone surrogate.
	if plain := strings.ToLower(text); !strings.Contains(plain, "\ufffd") && !strings.Contains(plain, `\ufffd`) {
		if read, err := json.Marshal(value); err == nil && bytes.Contains(read, []byte("\ufffd")) {
			return "", errors.New("a lone surrogate")
		}
	}
	var out strings.Builder
	err = writeValue(&out, value, 1)
	return out.String(), err
}

func writeValue(out *strings.Builder, value any, depth int) error {
	switch it := value.(type) {
	case nil:
		out.WriteString("null")
	case bool:
		out.WriteString(strconv.FormatBool(it))
	case string:
		return writeString(out, it)
	case json.Number:
		text, err := number(string(it))
		out.WriteString(text)
		return err
	case []any:
		if depth > depthMax {
			return errors.New("too deep")
		}
		out.WriteByte('[')
		for i, item := range it {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := writeValue(out, item, depth+1); err != nil {
				return err
			}
		}
		out.WriteByte(']')
	case map[string]any:
		if depth > depthMax {
			return errors.New("too deep")
		}
		keys := make([]string, 0, len(it))
		for key := range it {
			keys = append(keys, key)
		}
		slices.SortFunc(keys, func(a, b string) int { // by UTF-16 code units
			return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
		})
		out.WriteByte('{')
		for i, key := range keys {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := writeString(out, key); err != nil {
				return err
			}
			out.WriteByte(':')
			if err := writeValue(out, it[key], depth+1); err != nil {
				return err
			}
		}
		out.WriteByte('}')
	}
	return nil
}

func writeString(out *strings.Builder, text string) error {
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\t': `\t`, '\n': `\n`, '\f': `\f`, '\r': `\r`}
	out.WriteByte('"')
	for _, char := range text {
		if char&0xFFFE == 0xFFFE || (char >= 0xFDD0 && char <= 0xFDEF) {
			return errors.New("a code point that is no character")
		}
		if escaped, found := short[char]; found {
			out.WriteString(escaped)
		} else if char < 0x20 {
			fmt.Fprintf(out, `\u%04x`, char)
		} else {
			out.WriteRune(char)
		}
	}
	out.WriteByte('"')
	return nil
}

// number writes a number as ECMAScript does, with .0 behind a float that has an integral value.
func number(text string) (string, error) {
	if !strings.ContainsAny(text, ".eE") {
		value, err := strconv.ParseInt(text, 10, 64)
		if err != nil || value > integerMax || value < -integerMax {
			return "", errors.New("an integer beyond ±(2^53-1)")
		}
		return strconv.FormatInt(value, 10), nil
	}
	value, err := strconv.ParseFloat(text, 64)
	size := math.Abs(value)
	switch {
	case err != nil || size > integerMax:
		return "", errors.New("a number beyond ±(2^53-1)")
	case value == 0:
		return "0.0", nil
	case value == math.Trunc(value):
		return strconv.FormatFloat(value, 'f', 1, 64), nil
	case size >= 1e-6:
		return strconv.FormatFloat(value, 'f', -1, 64), nil
	}
	digits, exponent, _ := strings.Cut(strconv.FormatFloat(value, 'e', -1, 64), "e-")
	return digits + "e-" + strings.TrimLeft(exponent, "0"), nil
}

// --- DSSE ---

type signature struct {
	Keyid string `json:"keyid"`
	Sig   string `json:"sig"`
}

type letter struct {
	Payload     string      `json:"payload"`
	PayloadType string      `json:"payloadType"`
	Signatures  []signature `json:"signatures"`
}

func preAuthentication(kind string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(payload), payload)
}

func signLetter(kind string, payload []byte, name string, key ed25519.PrivateKey) (string, error) {
	encoded := base64.StdEncoding.EncodeToString
	sig := ed25519.Sign(key, preAuthentication(kind, payload))
	made, err := json.Marshal(letter{encoded(payload), kind, []signature{{name, encoded(sig)}}})
	return string(made), err
}

// openLetter answers the signed text of a letter of this kind, by the owner of the vkey, whose name it answers too.
func openLetter(text, kind, vkey string) (signer string, payload []byte, err error) {
	if _, err := readJSON(text); err != nil { // no key twice
		return "", nil, err
	}
	var read letter
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&read); err != nil {
		return "", nil, err
	}
	name, key, err := publicKey(vkey)
	if err != nil {
		return "", nil, err
	}
	if read.PayloadType != kind || len(read.Signatures) != 1 || read.Signatures[0].Keyid != name {
		return "", nil, errors.New("not one signature by this key, over this kind of letter")
	}
	strict := base64.StdEncoding.Strict()
	payload, err = strict.DecodeString(read.Payload)
	if err != nil {
		return "", nil, err
	}
	sig, err := strict.DecodeString(read.Signatures[0].Sig)
	if err != nil {
		return "", nil, err
	}
	if !ed25519.Verify(key, preAuthentication(kind, payload), sig) {
		return "", nil, errors.New("not signed as it is")
	}
	return name, payload, nil
}

// publicKey reads `<name>+<id>+<key>`.
func publicKey(vkey string) (string, ed25519.PublicKey, error) {
	parts := strings.SplitN(strings.TrimSpace(vkey), "+", 3)
	if len(parts) != 3 {
		return "", nil, errors.New("not a vkey")
	}
	raw, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize || raw[0] != 1 {
		return "", nil, errors.New("not the vkey of an Ed25519 key")
	}
	id := sha256.Sum256(append([]byte(parts[0]+"\n"), raw...))
	if hex.EncodeToString(id[:4]) != parts[1] {
		return "", nil, errors.New("the id of the vkey is not that of its key")
	}
	return parts[0], raw[1:], nil
}

// --- tickets ---

// message has the fields of a frozen message in the order of a canonical text.
type message struct {
	Cause             *string `json:"cause"`
	Commitment        string  `json:"commitment"`
	Conversation      string  `json:"conversation"`
	CreatedUs         int64   `json:"created_us"`
	ExpiresUs         int64   `json:"expires_us"`
	Headers           string  `json:"headers"`
	HeadersCommitment *string `json:"headers_commitment"`
	Hops              int64   `json:"hops"`
	ID                string  `json:"id"`
	Payload           string  `json:"payload"`
	Priority          int64   `json:"priority"`
	Recipient         string  `json:"recipient"`
	RecipientTenant   string  `json:"recipient_tenant"`
	Salt              string  `json:"salt"`
	Sender            string  `json:"sender"`
	Tenant            string  `json:"tenant"`
	Topic             *string `json:"topic"`
	Type              string  `json:"type"`
}

type ticketLetter struct {
	V       int            `json:"v"`
	Message message        `json:"message"`
	Answers map[string]any `json:"answers"`
	Ticket  struct {
		Origin       string `json:"origin"`
		Seq          int64  `json:"seq"`
		DecisionID   string `json:"decision_id"`
		Digest       string `json:"digest"`
		Constitution string `json:"constitution"`
		Revision     int64  `json:"revision"`
		IssuedUs     int64  `json:"issued_us"`
		ExpiresUs    int64  `json:"expires_us"`
		Nonce        string `json:"nonce"`
	} `json:"ticket"`
}

// checkTicket answers the digest of a message, recomputed from its bytes, when its node has signed just that.
func checkTicket(text, vkey string) (string, error) {
	signer, payload, err := openLetter(text, ticketType, vkey)
	if err != nil {
		return "", err
	}
	if same, err := canonicalPayload(string(payload)); err != nil || same != string(payload) {
		return "", errors.New("the ticket is not canonical JSON")
	}
	var read ticketLetter
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&read); err != nil {
		return "", err
	}
	digest, err := digestOf(read.Message)
	id, own := read.Message.ID, strings.HasPrefix(read.Message.ID, read.Message.Sender+"/")
	switch {
	case err != nil:
		return "", err
	case read.V != 1 || read.Ticket.Origin != signer:
		return "", errors.New("not the ticket of its signer")
	case read.Ticket.Digest != digest || !strings.HasPrefix(read.Ticket.DecisionID, id+"#"):
		return "", errors.New("not the ticket of this message")
	case !own && strings.Contains(id, "/"):
		return "", errors.New("not an id of its sender")
	case !slices.Contains(types, read.Message.Type):
		return "", errors.New("no such type")
	}
	return digest, nil
}

var types = []string{"command", "query", "response", "event", "notification", "heartbeat", "governance_request",
	"governance_response", "constitutional_validation", "task_request", "task_response"}

// digestOf hashes payload and headers with the salt, and what a digest covers with these in their places.
func digestOf(it message) (string, error) {
	salt, err := hex.DecodeString(it.Salt)
	if err != nil || len(salt) != 32 {
		return "", errors.New("the salt is not 32 bytes")
	}
	for _, text := range []string{it.Payload, it.Headers} {
		if same, err := canonicalPayload(text); err != nil || same != text {
			return "", errors.New("payload or headers are not canonical JSON")
		}
	}
	commitment := func(text string) string {
		sum := sha256.Sum256(append(slices.Clone(salt), text...))
		return hex.EncodeToString(sum[:])
	}
	var headers *string
	if it.Headers != "{}" {
		sum := commitment(it.Headers)
		headers = &sum
	}
	if commitment(it.Payload) != it.Commitment || (headers == nil) != (it.HeadersCommitment == nil) ||
		(headers != nil && *headers != *it.HeadersCommitment) {
		return "", errors.New("payload and headers are not what the commitments are of")
	}
	covered, err := json.Marshal(map[string]any{ // encoding/json sorts keys, and these values need no escaping
		"id": it.ID, "type": it.Type, "priority": it.Priority, "sender": it.Sender, "tenant": it.Tenant,
		"recipient": it.Recipient, "recipient_tenant": it.RecipientTenant, "topic": it.Topic,
		"conversation": it.Conversation, "cause": it.Cause, "created_us": it.CreatedUs, "expires_us": it.ExpiresUs,
		"hops": it.Hops, "headers": headers, "payload": it.Commitment,
	})
	sum := sha256.Sum256(covered)
	return hex.EncodeToString(sum[:]), err
}

// --- an agent of another process ---

func privateKey(seed string) (ed25519.PrivateKey, error) {
	raw, err := hex.DecodeString(seed)
	if err != nil || len(raw) != ed25519.SeedSize {
		return nil, errors.New("the seed is not 32 bytes")
	}
	return ed25519.NewKeyFromSeed(raw), nil
}

// join answers the challenge of the node of the vkey, as the agent `<tenant>/<agent>`.
func join(challenge, vkey, name, seed string) (string, error) {
	node, payload, err := openLetter(challenge, challengeType, vkey)
	if err != nil {
		return "", err
	}
	var read struct{ Origin, Nonce string }
	if err := json.Unmarshal(payload, &read); err != nil || read.Origin != node {
		return "", errors.New("not a challenge of its signer")
	}
	key, err := privateKey(seed)
	if err != nil {
		return "", err
	}
	tenant, agent, _ := strings.Cut(name, "/")
	said, err := json.Marshal(map[string]any{
		"v": 1, "origin": node, "agent": agent, "tenant": tenant, "nonce": read.Nonce,
		"wants": map[string]any{
			"roles": []string{"planner"}, "capabilities": []string{}, "topics": []string{}, "constitution": "latest",
		},
	})
	if err != nil {
		return "", err
	}
	return signLetter(joinType, said, name, key)
}

// signEnvelope signs a message, given as the text of an object with everything that the envelope is to say.
func signEnvelope(text, name, seed string) (string, error) {
	key, err := privateKey(seed)
	if err != nil {
		return "", err
	}
	return signLetter(envelopeType, []byte(text), name, key)
}
