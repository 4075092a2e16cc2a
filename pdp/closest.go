package main

import "strings"

// closest is the name that a misspelt one most likely stands for; "" when none is like it.
func closest(name string, known []string) string {
	best, least := "", max(1, len(name)/3)+1
	for _, other := range known {
		if other == name {
			continue
		}
		if strings.EqualFold(other, name) {
			return other
		}
		if away := distance(name, other); away < least {
			best, least = other, away
		}
	}
	return best
}

// distance counts the letters to add, take away, replace or swap with the next one.
func distance(a, b string) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			other := 1
			if a[i-1] == b[j-1] {
				other = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+other)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
