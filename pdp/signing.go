package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/util"
)

const (
	reasonUnsigned     = "unsigned"
	reasonBadSignature = "bad_signature"

	signatureAlgorithm = "ES256"
	fileAlgorithm      = bundle.SHA256
	trustedKeyID       = "trusted"
)

// claims is what a signature says: OPA's list of files, hashed by meaning, and our digest of their bytes.
type claims struct {
	Files  []bundle.FileInfo `json:"files"`
	Digest string            `json:"eab_digest"`
}

type claimsAnswer struct {
	Digest  string `json:"digest"`
	Payload string `json:"payload"` // the JSON text to sign, always the same for the same bytes
}

// signingClaims says what to sign. The key never comes here.
func signingClaims(from string) (any, error) {
	src, err := packable(from)
	if err != nil {
		return nil, err
	}
	hasher, err := bundle.NewSignatureHasher(fileAlgorithm)
	if err != nil {
		return nil, err
	}
	said := claims{Files: []bundle.FileInfo{}, Digest: src.digest}
	for _, file := range src.files {
		if file.path == signaturesFile {
			continue
		}
		var value any = file.data
		if bundle.IsStructuredDoc(file.path) {
			if err := util.Unmarshal(file.data, &value); err != nil {
				return nil, &failure{Code: "invalid", Message: fmt.Sprintf("%s: %v", file.path, err)}
			}
		}
		sum, err := hasher.HashFile(value)
		if err != nil {
			return nil, err
		}
		said.Files = append(said.Files, bundle.NewFile(file.path, hex.EncodeToString(sum), string(fileAlgorithm)))
	}
	payload, err := json.Marshal(said)
	return claimsAnswer{Digest: src.digest, Payload: string(payload)}, err
}

// packable reads a source that can be written as a bundle.
func packable(from string) (*source, error) {
	src, problems, err := readSource(from)
	if err != nil {
		return nil, err
	}
	r := &report{src: src, problems: problems}
	if len(problems) == 0 {
		checkFileKinds(src, r)
	}
	if len(r.problems) > 0 {
		return nil, invalid(r.problems)
	}
	return src, nil
}

// sign writes the bundle with this token as its one signature, in the place of any other.
func sign(from, to, token string) (any, error) {
	src, err := packable(from)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(bundle.SignaturesConfig{Signatures: []string{token}})
	if err != nil {
		return nil, err
	}
	src.files = slices.DeleteFunc(src.files, func(file sourceFile) bool { return file.path == signaturesFile })
	src.files = append(src.files, sourceFile{path: signaturesFile, data: text})
	slices.SortFunc(src.files, func(a, b sourceFile) int { return strings.Compare(a.path, b.path) })
	packed, err := tarOf(src)
	if err != nil {
		return nil, err
	}
	if err := writeWhole(to, packed); err != nil {
		return nil, err
	}
	return packAnswer{Digest: src.digest, Bytes: len(packed), Source: src.kind}, nil
}

type verifyAnswer struct {
	OK      bool   `json:"ok"`
	Digest  string `json:"digest"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Key     int    `json:"key"` // which of the keys has signed it, from 0
}

// verify says whether one of these public keys (PEM) has signed the bundle: by OPA's own verification, and by the claim
// of our digest, since OPA compares data files by meaning only.
func verify(from string, keys []string) (any, error) {
	src, problems, err := readSource(from)
	if err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, invalid(problems)
	}
	answer := verifyAnswer{Digest: src.digest, Reason: reasonUnsigned, Key: -1}
	file := src.file(signaturesFile)
	switch {
	case src.kind == kindFolder:
		answer.Message = "a folder has no signature"
		return answer, nil
	case file == nil:
		answer.Message = "there is no " + signaturesFile + " in it"
		return answer, nil
	}
	answer.Reason = reasonBadSignature
	said, err := readToken(file.data)
	if err != nil {
		answer.Message = fmt.Sprintf("%s: %v", signaturesFile, err)
		return answer, nil
	}
	packed, err := tarOf(src)
	if err != nil {
		return nil, err
	}
	answer.Message = "no trusted key is named"
	for i, key := range keys {
		if err := verifiedBy(key, packed); err != nil {
			answer.Message = err.Error()
			continue
		}
		if said.Digest != src.digest {
			answer.Message = fmt.Sprintf("it was signed for %q, and its bytes have the digest %s", said.Digest, src.digest)
			return answer, nil
		}
		return verifyAnswer{OK: true, Digest: src.digest, Key: i}, nil
	}
	return answer, nil
}

// verifiedBy is OPA's own verification of a bundle.
func verifiedBy(key string, packed []byte) error {
	config := &bundle.KeyConfig{Key: key, Algorithm: signatureAlgorithm}
	trusted := bundle.NewVerificationConfig(map[string]*bundle.KeyConfig{trustedKeyID: config}, trustedKeyID, "", nil)
	_, err := bundle.NewCustomReader(bundle.NewTarballLoaderWithBaseURL(bytes.NewReader(packed), "")).
		WithBundleVerificationConfig(trusted).
		WithSizeLimitBytes(unpackedBytesMax).
		Read()
	return err
}

// readToken reads the one token of a signatures file, before anybody has verified it.
func readToken(text []byte) (claims, error) {
	var said claims
	var config bundle.SignaturesConfig
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&config); err != nil {
		return said, err
	}
	if config.Plugin != "" || len(config.Signatures) != 1 {
		return said, fmt.Errorf("it has to hold exactly one signature, and no plugin")
	}
	parts := strings.Split(config.Signatures[0], ".")
	if len(parts) != 3 {
		return said, fmt.Errorf("the signature is no compact JWS (RFC 7515)")
	}
	var header struct {
		Algorithm string `json:"alg"`
	}
	if err := decodePart(parts[0], &header); err != nil {
		return said, err
	}
	if header.Algorithm != signatureAlgorithm {
		return said, fmt.Errorf("it is signed with %q, and %s is wanted", header.Algorithm, signatureAlgorithm)
	}
	return said, decodePart(parts[1], &said)
}

func decodePart(part string, into any) error {
	text, err := base64.RawURLEncoding.DecodeString(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}
