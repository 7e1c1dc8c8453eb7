package proxy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/client"

	"github.com/weft-net/weft/docker/plugin"
)

// create creates a container and connects it to the network that it requests.
func (p *Proxy) create(ctx context.Context, req *http.Request, body []byte) (*response, error) {
	doc, err := parseDocument(body)
	if err != nil {
		return p.forward(ctx, req, body) // the engine reports the error
	}
	api, err := p.client()
	if err != nil {
		return nil, err
	}
	c, err := readCreateRequest(doc)
	if err != nil {
		return p.forward(ctx, req, body)
	}
	want, err := p.addressesFor(ctx, api, c)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	ours := isOurNetwork(ctx, api, c.mode)
	if want != nil || ours {
		p.edit(c, req.URL.Query().Get("name"))
	}
	allowSpoof, err := mayAllowSpoof(c.env)
	if err == nil && allowSpoof && ours {
		err = c.setDriverOption(plugin.AllowSpoofOption, "true")
	}
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	if want == nil && !c.edited {
		return p.forward(ctx, req, body)
	}
	var j networkJoin
	if want != nil {
		if j, err = p.ensureNetwork(ctx, api, want, c.mode == modeNone); err != nil {
			return nil, fmt.Errorf("create container: %w", err)
		}
		j.allowSpoof = allowSpoof
		if c.mode == modeNone {
			// The engine refuses to connect a container of network mode none.
			c.moveTo(j)
			want = nil
		}
	}
	if body, err = c.document(); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	resp, err := p.forward(ctx, req, body)
	if err != nil || resp.code != http.StatusCreated || want == nil {
		return resp, err
	}
	return resp, p.connect(ctx, api, resp.body, c.hostname, j)
}

// connect connects a created container to a network, or removes the container.
// Created is the engine's response to its creation, hostname that of the request.
func (p *Proxy) connect(ctx context.Context, api *client.Client, created []byte, hostname string, j networkJoin) error {
	var made struct{ ID string }
	if err := json.Unmarshal(created, &made); err != nil {
		return fmt.Errorf("create container: read docker's answer: %w", err)
	}
	if !p.NoRewriteHosts {
		j.container, j.hostname = made.ID, cmp.Or(hostname, made.ID[:min(len(made.ID), shortID)])
	}
	_, err := api.NetworkConnect(ctx, j.network, client.NetworkConnectOptions{Container: made.ID, EndpointConfig: j.settings()})
	if err == nil {
		return nil
	}
	_, rerr := api.ContainerRemove(context.WithoutCancel(ctx), made.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	return errors.Join(fmt.Errorf("create container: connect it to network %s: %w", j.network, err), rerr)
}

// shortID is the length of the hostname that the engine makes of an ID.
const shortID = 12

// Network modes that can be combined with a network of weft's.
const (
	modeNone    = "none"
	modeBridge  = "bridge"
	modeDefault = "default"
)

// createRequest holds the parts of a request that the proxy reads and changes.
type createRequest struct {
	doc, host document // the whole request, and its HostConfig
	edited    bool

	image, hostname, domainname string
	env, dns, search, options   []string
	labels                      map[string]string
	mode                        string
}

func readCreateRequest(doc document) (*createRequest, error) {
	c := &createRequest{doc: doc}
	var err error
	if c.host, err = doc.object("HostConfig"); err != nil {
		return nil, err
	}
	err = errors.Join(
		doc.get("Image", &c.image), doc.get("Hostname", &c.hostname), doc.get("Domainname", &c.domainname),
		doc.get("Env", &c.env), doc.get("Labels", &c.labels),
		c.host.get("NetworkMode", &c.mode), c.host.get("Dns", &c.dns), c.host.get("DnsSearch", &c.search),
		c.host.get("DnsOptions", &c.options),
	)
	return c, err
}

// joinable reports whether weft's network can be added to the container's own. A
// container on a network that its user created gets no other.
func (c *createRequest) joinable() bool {
	return slices.Contains([]string{"", modeDefault, modeBridge, modeNone}, c.mode)
}

// addressesFor returns the addresses that the container requests, or gets by
// default; nil for none.
func (p *Proxy) addressesFor(ctx context.Context, api *client.Client, c *createRequest) (*addressRequest, error) {
	if !c.joinable() {
		return nil, nil
	}
	env := slices.Clone(c.env)
	if c.image != "" {
		// Variables of the image count too; those of the container override them.
		if r, err := api.ImageInspect(ctx, c.image); err == nil && r.Config != nil {
			env = append(slices.Clone(r.Config.Env), env...)
		}
	}
	want, given, err := requestedAddresses(env, p.Subnet)
	if err != nil || given {
		return want, err
	}
	if p.NoDefaultIPAlloc || !p.Subnet.IsValid() {
		return nil, nil
	}
	return &addressRequest{subnet: p.Subnet}, nil
}

// edit gives the container its hostname, and the name server unless its user
// chose one.
func (p *Proxy) edit(c *createRequest, name string) {
	server, domain, ok := p.DNS()
	if c.hostname == "" {
		if h := p.hostname(name, c.labels); h != "" {
			c.hostname, c.edited = h, true
			if c.domainname == "" && ok && !strings.Contains(h, ".") {
				c.domainname = domain
			}
		}
	}
	if p.WithoutDNS || !ok || len(c.dns) > 0 {
		return
	}
	c.dns, c.edited = []string{server.String()}, true
	if len(c.search) == 0 {
		c.search = c.searched(domain)
	}
	if !slices.ContainsFunc(c.options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		// The engine sets it to 0, and names without a domain would not be searched for.
		c.options = append(c.options, "ndots:1")
	}
}

// searched returns the domains in which a container looks for names: its own one first, if
// that is within the domain of the mesh.
func (c *createRequest) searched(domain string) (list []string) {
	own := c.domainname
	if own == "" {
		_, own, _ = strings.Cut(c.hostname, ".")
	}
	inside := strings.HasSuffix(strings.ToLower("."+own), strings.ToLower("."+domain))
	switch {
	case own == "" || strings.EqualFold(own, domain):
		return []string{domain}
	case inside || c.domainname != "":
		return []string{own, domain}
	}
	return []string{domain}
}

// maxHostname is the maximum length of a hostname in bytes, HOST_NAME_MAX of Linux.
const maxHostname = 64

// hostname derives a hostname from the container's label or, without one, its name. What
// does not match stays as it is. "" leaves the choice to the engine.
func (p *Proxy) hostname(name string, labels map[string]string) string {
	name = cmp.Or(labels[p.HostnameFromLabel], strings.TrimPrefix(name, "/"))
	if p.HostnameMatch != nil {
		name = p.HostnameMatch.ReplaceAllString(name, p.HostnameReplacement)
	}
	if len(name) > maxHostname {
		return ""
	}
	return name
}

// moveTo makes that network the only one of the container.
func (c *createRequest) moveTo(j networkJoin) {
	c.mode, c.edited = j.network, true
	networking := document{} // set cannot fail on such plain data
	networking.set("EndpointsConfig", map[string]any{j.network: j.settings()})
	c.doc.set("NetworkingConfig", networking)
}

// setDriverOption sets an option of the container's endpoint on the network that is its mode,
// unless the user has set it.
func (c *createRequest) setDriverOption(name, value string) error {
	chain := []string{"NetworkingConfig", "EndpointsConfig", c.mode, "DriverOpts"}
	parts := []document{c.doc}
	for _, field := range chain {
		part, err := parts[len(parts)-1].object(field)
		if err != nil {
			return err
		}
		parts = append(parts, part)
	}
	last := parts[len(chain)]
	if _, given := last[name]; given {
		return nil
	}
	c.edited = true
	err := last.set(name, value)
	for i := len(chain) - 1; i >= 0 && err == nil; i-- {
		err = parts[i].set(chain[i], parts[i+1])
	}
	return err
}

// document returns the edited request.
func (c *createRequest) document() ([]byte, error) {
	var errs []error
	put := func(d document, name string, given bool, v any) {
		if given {
			errs = append(errs, d.set(name, v))
		}
	}
	put(c.host, "NetworkMode", c.mode != "", c.mode)
	put(c.host, "Dns", len(c.dns) > 0, c.dns)
	put(c.host, "DnsSearch", len(c.search) > 0, c.search)
	put(c.host, "DnsOptions", len(c.options) > 0, c.options)
	put(c.doc, "Hostname", c.hostname != "", c.hostname)
	put(c.doc, "Domainname", c.domainname != "", c.domainname)
	put(c.doc, "HostConfig", len(c.host) > 0, c.host)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return json.Marshal(c.doc)
}
