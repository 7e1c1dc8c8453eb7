// Package docker tests weft with real Docker engines: `make test-docker`. Its tests have the
// build tag docker. Each makes its own sandbox hosts with an engine and a router, so several
// tests may run at once.
package docker
