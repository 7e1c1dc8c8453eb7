package main

import (
	"log/slog"

	"github.com/weft-net/weft/kube"
)

// policies makes what enforces NetworkPolicies: nothing does yet.
func policies(_ *kube.Settings, log *slog.Logger) kube.Policies {
	log.Warn("NetworkPolicies are not enforced: this build has no engine for them")
	return nil
}
