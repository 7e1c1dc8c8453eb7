// Package count writes numbers of things for users: "1 host", "2 hosts".
package count

import "fmt"

// Number is what things are counted in. Sizes of address ranges are floats.
type Number interface{ int | uint | uint64 | float64 }

// Of returns n with the word for so many things: one for 1, else many.
func Of[N Number](n N, one, many string) string {
	format := "%d %s"
	if _, ok := any(n).(float64); ok {
		format = "%.0f %s"
	}
	return fmt.Sprintf(format, n, Form(n, one, many))
}

// Form returns the word for n things: one for 1, else many.
func Form[N Number](n N, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
