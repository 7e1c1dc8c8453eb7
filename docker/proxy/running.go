package proxy

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/client"

	"github.com/weft-net/weft/docker/hosts"
	"github.com/weft-net/weft/docker/plugin"
)

// start starts a container, then makes its hostname resolve to its weft address in
// /etc/hosts. The engine writes all addresses there, those of other networks first.
func (p *Proxy) start(ctx context.Context, req *http.Request, body []byte) (*response, error) {
	resp, err := p.forward(ctx, req, body)
	if err != nil || resp.code != http.StatusNoContent {
		return resp, err
	}
	if err := p.rewriteHosts(ctx, containerName(req)); err != nil {
		p.log.Warn("could not put the weft address into /etc/hosts", "container", containerName(req), "err", err)
	}
	return resp, nil
}

func (p *Proxy) rewriteHosts(ctx context.Context, container string) error {
	api, err := p.client()
	if err != nil {
		return err
	}
	r, err := api.ContainerInspect(ctx, container, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	var own []netip.Addr
	if r.Container.NetworkSettings != nil {
		for name, e := range r.Container.NetworkSettings.Networks {
			if e != nil && e.IPAddress.IsValid() && isOurNetworkName(name) {
				own = append(own, e.IPAddress)
			}
		}
	}
	if len(own) == 0 || r.Container.Config == nil || r.Container.HostsPath == "" {
		return nil
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return hosts.Rewrite(r.Container.HostsPath, r.Container.Config.Hostname, own, nil)
}

// isOurNetworkName reports whether a name is that of a network that the proxy connects
// containers to.
func isOurNetworkName(name string) bool {
	return name == plugin.Name || strings.HasPrefix(name, plugin.Name+"-")
}

// inspect shows the weft address in the fields where the engine shows the address on
// the default bridge.
func (p *Proxy) inspect(ctx context.Context, req *http.Request, body []byte) (*response, error) {
	resp, err := p.forward(ctx, req, body)
	if err != nil || resp.code != http.StatusOK {
		return resp, err
	}
	if edited, ok := rewriteInspect(resp.body); ok {
		resp.body = edited
	}
	return resp, nil
}

// rewriteInspect edits the response to an inspect; ok is false if nothing was edited.
func rewriteInspect(body []byte) (edited []byte, ok bool) {
	doc, err := parseDocument(body)
	if err != nil {
		return nil, false
	}
	settings, err := doc.object("NetworkSettings")
	if err != nil {
		return nil, false
	}
	networks, err := settings.object("Networks")
	if err != nil {
		return nil, false
	}
	for _, name := range slices.Sorted(maps.Keys(networks)) { // the default network comes first
		if !isOurNetworkName(name) {
			continue
		}
		end, err := networks.object(name)
		if err != nil {
			continue
		}
		var address string
		if end.get("IPAddress", &address) != nil || address == "" {
			continue
		}
		for _, part := range []string{"IPAddress", "IPPrefixLen", "MacAddress", "Gateway"} {
			if raw, there := end[part]; there {
				settings[settings.key(part)] = raw
			}
		}
		if doc.set("NetworkSettings", settings) != nil {
			return nil, false
		}
		edited, err = json.Marshal(doc)
		return edited, err == nil
	}
	return nil, false
}
