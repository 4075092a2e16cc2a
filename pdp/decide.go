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

	"github.com/open-policy-agent/opa/v1/ast"
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
	other   string // compare: of the candidate
	tenant  string
	input   []byte
	timeout time.Duration // from arrival, waiting included
	arrived time.Time
}

// parseAsk reads the body of decide: digest (64 hex) | u32 timeout_us | u16 length + tenant | input JSON; and of compare,
// where the candidate's digest stands before the input.
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
	a := &ask{
		id:      question.id,
		digest:  string(body[:digestHexBytes]),
		tenant:  string(body[askFixedBytes:tenantEnd]),
		input:   body[tenantEnd:],
		timeout: timeout,
	}
	if question.op == opCompare {
		if len(a.input) < digestHexBytes {
			return nil, &failure{Code: "malformed", Message: "a compare frame that ends inside the candidate's digest"}
		}
		a.other, a.input = string(a.input[:digestHexBytes]), a.input[digestHexBytes:]
	}
	return a, nil
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
		s.out.sendFailure(a.id, unknownDigest(a.digest))
		return
	}
	if a.other != "" {
		s.compare(a, law, started, left)
		return
	}
	decision, fail := law.evaluate(a.input, left)
	if fail != nil {
		s.out.sendFailure(a.id, fail)
		return
	}
	ended := time.Now()
	theCores.settle(ended)
	s.out.send(a.id, statusOK, microseconds(ended.Sub(started)), decision)
}

func unknownDigest(digest string) *failure {
	return &failure{Code: "unknown_digest", Message: "no constitution " + digest + " is loaded here"}
}

// evaluate asks data.bus.decision; nothing but a timeout, an error or the one value comes back (nil: undefined).
func (c *constitution) evaluate(text []byte, left time.Duration, options ...rego.EvalOption) ([]byte, *failure) {
	input, fail := readInput(text, c.wanted)
	if fail != nil {
		return nil, fail
	}
	return c.decide(input, left, options...)
}

func readInput(text []byte, want wanted) (ast.Value, *failure) {
	input, err := parseInput(text, want)
	if err != nil {
		return nil, &failure{Code: "policy_malformed", Message: "the input is not JSON: " + err.Error()}
	}
	return input, nil
}

func (c *constitution) decide(input ast.Value, left time.Duration, options ...rego.EvalOption) ([]byte, *failure) {
	found, fail := c.value(c.query, input, left, options...)
	if fail != nil || found == nil {
		return nil, fail
	}
	return decisionText(found.Value)
}

// value is that of a query of one expression; nil: undefined.
func (c *constitution) value(
	query rego.PreparedEvalQuery, input ast.Value, left time.Duration, options ...rego.EvalOption,
) (*rego.ExpressionValue, *failure) {
	deadline := c.deadlines.start(left)
	defer c.deadlines.end(deadline)
	options = append(options,
		rego.EvalParsedInput(input), rego.EvalExternalCancel(deadline), rego.EvalTransaction(c.txn),
		rego.EvalBaseCache(c.base), rego.EvalMetrics(metrics.NoOp()))
	results, err := query.Eval(context.Background(), options...)
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
	return results[0].Expressions[0], nil
}

func decisionText(value any) ([]byte, *failure) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, &failure{Code: "policy_error", Message: "the decision cannot be written as JSON: " + err.Error()}
	}
	text := bytes.TrimRight(out.Bytes(), "\n")
	if len(text)+frameFixedBytes+4 > frameBytesMax {
		return nil, &failure{Code: "policy_error", Message: "the decision is larger than a frame"}
	}
	return text, nil
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
