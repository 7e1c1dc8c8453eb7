// Package firewalls tests weft next to the firewalls and network managers of distributions,
// as they are, in sandbox hosts: make test-firewalls.
package firewalls
