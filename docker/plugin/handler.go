package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/render"
)

const (
	// maxBody is the most bytes of a request that are read.
	maxBody = 1 << 20
	// timeout bounds a request: the engine holds locks meanwhile.
	timeout = 30 * time.Second

	contentType = "application/vnd.docker.plugins.v1.1+json"
)

// Handler serves the drivers.
func (d *Driver) Handler() http.Handler {
	mux := http.NewServeMux()
	on := func(name string, h http.Handler) { mux.Handle("POST /"+name, h) }
	nothing := answer(func(context.Context, empty) (empty, error) { return empty{}, nil }, d.log)
	fixed := func(v any) http.Handler {
		return answer(func(context.Context, empty) (any, error) { return v, nil }, d.log)
	}
	on("Plugin.Activate", fixed(map[string][]string{"Implements": {"NetworkDriver", "IpamDriver"}}))

	on("NetworkDriver.GetCapabilities", fixed(capabilities{Scope: "local", ConnectivityScope: "global"}))
	on("NetworkDriver.CreateNetwork", answer(d.createNetwork, d.log))
	on("NetworkDriver.DeleteNetwork", answer(d.deleteNetwork, d.log))
	on("NetworkDriver.CreateEndpoint", answer(d.createEndpoint, d.log))
	on("NetworkDriver.EndpointOperInfo", answer(d.endpointInfo, d.log))
	on("NetworkDriver.Join", answer(d.join, d.log))
	on("NetworkDriver.Leave", answer(d.leave, d.log))
	on("NetworkDriver.DeleteEndpoint", answer(d.deleteEndpoint, d.log))
	for _, name := range []string{"AllocateNetwork", "FreeNetwork", "ProgramExternalConnectivity", "RevokeExternalConnectivity", "DiscoverNew", "DiscoverDelete"} {
		on("NetworkDriver."+name, nothing)
	}

	on("IpamDriver.GetCapabilities", fixed(ipamCapabilities{}))
	on("IpamDriver.GetDefaultAddressSpaces", fixed(addressSpaces{localSpace, globalSpace}))
	on("IpamDriver.RequestPool", answer(d.requestPool, d.log))
	on("IpamDriver.ReleasePool", answer(d.releasePool, d.log))
	on("IpamDriver.RequestAddress", answer(d.requestAddress, d.log))
	on("IpamDriver.ReleaseAddress", answer(d.releaseAddress, d.log))
	return mux
}

// answer reads a Q from the body, calls f and writes what it returns.
func answer[Q, A any](f func(context.Context, Q) (A, error), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, began := strings.TrimPrefix(r.URL.Path, "/"), time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		var q Q
		var body any = q
		// A request without parameters may have no body at all.
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&q)
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("read the request: %w", err)
		} else {
			body, err = f(ctx, q)
		}
		code := http.StatusOK
		if err != nil {
			log.Warn("docker's request failed", "request", name, "err", err)
			code, body = http.StatusInternalServerError, map[string]string{"Err": render.Text(strings.Join(strings.Fields(err.Error()), " "))}
		} else {
			log.Debug("docker's request", "request", name, "took", time.Since(began))
		}
		b, err := json.Marshal(body)
		if err != nil {
			code, b = http.StatusInternalServerError, []byte(`{"Err":"the reply cannot be written"}`)
		}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		w.Write(b)
	})
}
