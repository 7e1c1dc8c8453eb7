// Package docker tests weft beside real Docker engines: `make test-docker`.
// Its tests have the build tag docker. Each makes machines of namespaces, every
// one with an engine and a router, so several may run at once.
package docker
