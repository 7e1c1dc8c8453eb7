// Package kube tests weft on a real Kubernetes cluster, with the released manifest and image. Its
// tests have the build tag kube; `make test-kube` installs what they need.
package kube
