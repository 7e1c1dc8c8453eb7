package kube

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// passwordKey is the key of the password in the generated Secret.
	passwordKey = "password"
	// passwordBytes is how many random bytes a generated password has.
	passwordBytes = 32
)

// GivesPassword reports whether the environment or the further arguments of weft launch say which
// password the router uses. Then none is generated.
func (s *Settings) GivesPassword(lookup func(string) (string, bool)) bool {
	for _, name := range []string{"WEFT_PASSWORD", "WEFT_PASSWORD_FILE"} {
		if v, _ := lookup(name); v != "" {
			return true
		}
	}
	for _, arg := range s.ExtraArgs {
		name, _, _ := strings.Cut(arg, "=")
		if name == "--password" || name == "--password-file" {
			return true
		}
	}
	return false
}

// GeneratedPassword returns the password in the Secret s.GeneratedSecret. The first agent that
// finds the Secret empty fills it in from random; all others get the same password. It waits for
// the API server, and for the Secret, until ctx ends: without them it cannot know the password of
// the other nodes, and a router without one would let everybody in.
//
// The manifest ships the Secret without content, because the right to create Secrets cannot be
// limited to one name, and whoever may create any Secret of this namespace can get tokens of other
// accounts. The right to update this one Secret gives a node nothing that it does not know.
func GeneratedPassword(ctx context.Context, client kubernetes.Interface, s *Settings, random io.Reader, log *slog.Logger) (string, error) {
	errs := newErrorLog(log)
	for {
		p, err := generatedPassword(ctx, client, s, random)
		if err == nil {
			return p, nil
		}
		again := retryEvery
		if apierrors.IsConflict(err) {
			again = 0 // another node was faster
		} else {
			errs.failed("get the password of the mesh", err)
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), err)
		case <-time.After(again):
		}
	}
}

func generatedPassword(ctx context.Context, client kubernetes.Interface, s *Settings, random io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	secrets := client.CoreV1().Secrets(s.Namespace)
	secret, err := secrets.Get(ctx, s.GeneratedSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return "", fmt.Errorf("there is no Secret %s/%s; apply weft's manifest again", s.Namespace, s.GeneratedSecret)
	}
	if err != nil {
		return "", err
	}
	if p := secret.Data[passwordKey]; len(p) > 0 {
		return string(p), nil
	}
	b := make([]byte, passwordBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", fmt.Errorf("generate a password: %w", err)
	}
	p := base64.RawURLEncoding.EncodeToString(b)
	if secret.Data == nil {
		secret.Data = make(map[string][]byte)
	}
	secret.Data[passwordKey] = []byte(p)
	// The API server refuses it with a conflict if somebody has written the Secret since.
	if _, err := secrets.Update(ctx, secret, metav1.UpdateOptions{}); err != nil {
		return "", err
	}
	return p, nil
}
