// Package kube tests weft on a real Kubernetes cluster, by the manifest and
// the image that ship. Build with the tag kube; `make test-kube` has what it needs.
package kube
