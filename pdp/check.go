package main

// checkAnswer is the result of every activation check of contract §3 but signatures, expiry and the order of
// revisions, which are the business of whoever activates.
type checkAnswer struct {
	OK        bool       `json:"ok"`
	Digest    string     `json:"digest"`
	Revision  string     `json:"revision"`
	Name      string     `json:"name"`
	NotAfter  *string    `json:"not_after"`
	Signed    bool       `json:"signed"`
	Rules     []string   `json:"rules"`
	ReadPaths [][]string `json:"read_paths"`
	Widened   []widened  `json:"widened"`
	Cacheable bool       `json:"cacheable"`
	Problems  []problem  `json:"problems"`
	Tests     testCounts `json:"tests"`
	Warnings  []problem  `json:"warnings"` // what can be activated and should be looked at; only when asked for
}

type testCounts struct {
	Passed   int           `json:"passed"`
	Failed   int           `json:"failed"`
	Errored  int           `json:"errored"`
	Failures []testFailure `json:"failures"`
}

type testFailure struct {
	Package string `json:"package"`
	Name    string `json:"name"`
	File    string `json:"file"`
	Row     int    `json:"row"`
	Message string `json:"message"`
}

func check(r request) (any, error) {
	src, problems, err := readSource(r.Path)
	if err != nil {
		return nil, err
	}
	answer := checkAnswer{
		Rules: []string{}, ReadPaths: [][]string{}, Widened: []widened{}, Problems: []problem{},
		Tests: testCounts{Failures: []testFailure{}}, Warnings: []problem{},
	}
	if len(problems) > 0 {
		answer.Problems = problems
		return answer, nil
	}
	c, problems := compileConstitution(src)
	s := c.summary(src)
	answer.Digest, answer.Revision, answer.Name, answer.NotAfter = s.Digest, s.Revision, s.Name, s.NotAfter
	answer.Signed, answer.Rules, answer.ReadPaths, answer.Cacheable = s.Signed, s.Rules, s.ReadPaths, s.Cacheable
	answer.Widened = orEmpty(c.reads.widened)
	var seen *answersSeen
	if r.Warnings {
		answer.Warnings = append(answer.Warnings, c.misplacedTests()...)
		if len(problems) == 0 {
			answer.Warnings = append(answer.Warnings, c.warnings()...)
			seen = newAnswersSeen()
		}
	}
	if len(problems) == 0 {
		answer.Tests, problems = c.runTests(seen)
	}
	if seen != nil && len(problems) == 0 {
		answer.Warnings = append(answer.Warnings, c.untested(seen)...)
	}
	answer.Problems = orEmpty(problems)
	answer.OK = len(problems) == 0
	return answer, nil
}
