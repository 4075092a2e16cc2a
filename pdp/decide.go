package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

const (
	digestHexBytes = 64
	askFixedBytes  = digestHexBytes + 4 + 2

	codeTimeout = "policy_timeout"
)

// ask is one question to the policy.
type ask struct {
	id      uint64
	digest  string
	tenant  string
	input   []byte
	timeout time.Duration // from arrival, waiting included
	arrived time.Time
}

// parseAsk reads the body of decide: digest (64 hex) | u32 timeout_us | u16 length + tenant | input JSON.
func parseAsk(question frame) (*ask, *failure) {
	body := question.body
	if len(body) < askFixedBytes {
		return nil, &failure{Code: "malformed", Message: "a decide frame that is too short"}
	}
	timeout := time.Duration(binary.LittleEndian.Uint32(body[digestHexBytes:])) * time.Microsecond
	tenantEnd := askFixedBytes + int(binary.LittleEndian.Uint16(body[digestHexBytes+4:]))
	if len(body) < tenantEnd {
		return nil, &failure{Code: "malformed", Message: "a decide frame that ends inside the tenant"}
	}
	return &ask{
		id:      question.id,
		digest:  string(body[:digestHexBytes]),
		tenant:  string(body[askFixedBytes:tenantEnd]),
		input:   body[tenantEnd:],
		timeout: timeout,
	}, nil
}

// decide evaluates one question and sends the answer. Whatever goes wrong is an error answer, never a decision.
func (s *server) decide(a *ask) {
	defer func() {
		if broken := recover(); broken != nil {
			fmt.Fprintf(os.Stderr, "eab-pdp: decide: %v\n%s", broken, debug.Stack())
			s.out.sendFailure(a.id, &failure{Code: "policy_error", Message: fmt.Sprintf("the evaluation broke: %v", broken)})
		}
	}()
	started := time.Now()
	left := a.timeout - started.Sub(a.arrived)
	if left <= 0 {
		s.out.sendFailure(a.id, &failure{Code: codeTimeout, Message: "waited past the deadline"})
		return
	}
	law := s.find(a.digest)
	if law == nil {
		s.out.sendFailure(a.id, &failure{Code: "unknown_digest", Message: "no constitution " + a.digest + " is loaded here"})
		return
	}
	decision, fail := law.evaluate(a.input, left)
	if fail != nil {
		s.out.sendFailure(a.id, fail)
		return
	}
	if len(decision)+frameFixedBytes+4 > frameBytesMax {
		s.out.sendFailure(a.id, &failure{Code: "policy_error", Message: "the decision is larger than a frame"})
		return
	}
	ended := time.Now()
	theCores.settle(ended)
	var took [4]byte
	binary.LittleEndian.PutUint32(took[:], uint32(min(ended.Sub(started).Microseconds(), 1<<32-1)))
	s.out.send(a.id, statusOK, took[:], decision)
}

// evaluate asks data.bus.decision; nothing but a timeout, an error or the one value comes back (nil: undefined).
func (c *constitution) evaluate(input []byte, left time.Duration, options ...rego.EvalOption) ([]byte, *failure) {
	value, err := parseInput(input, c.wanted)
	if err != nil {
		return nil, &failure{Code: "policy_malformed", Message: "the input is not JSON: " + err.Error()}
	}
	deadline := c.deadlines.start(left)
	defer c.deadlines.end(deadline)
	options = append(options,
		rego.EvalParsedInput(value), rego.EvalExternalCancel(deadline), rego.EvalTransaction(c.txn),
		rego.EvalBaseCache(c.base), rego.EvalMetrics(metrics.NoOp()))
	results, err := c.query.Eval(context.Background(), options...)
	switch {
	case topdown.IsCancel(err):
		return nil, &failure{Code: codeTimeout, Message: "the evaluation passed its deadline"}
	case err != nil:
		return nil, &failure{Code: "policy_error", Message: c.errorText(err)}
	case len(results) == 0:
		return nil, nil
	case len(results) > 1 || len(results[0].Expressions) != 1:
		return nil, &failure{Code: "policy_error", Message: "more than one decision"}
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(results[0].Expressions[0].Value); err != nil {
		return nil, &failure{Code: "policy_error", Message: "the decision cannot be written as JSON: " + err.Error()}
	}
	return bytes.TrimRight(out.Bytes(), "\n"), nil
}

// errorText is what OPA says, in its form: `file:row: code: message`.
func (c *constitution) errorText(err error) string {
	var broken *topdown.Error
	if errors.As(err, &broken) {
		if text := conflictText(c.compiler, broken); text != "" {
			return fmt.Sprintf("%s:%d: %s: %s", broken.Location.File, broken.Location.Row, broken.Code, text)
		}
	}
	return err.Error()
}
