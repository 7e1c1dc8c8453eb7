package api

import "strings"

// Beginnings of the owners of addresses, which are the IDs of attachments.
const (
	OwnerCNI   = "cni:"   // cni:NETWORK:CONTAINER:INTERFACE, of a container of the CNI plugin
	OwnerNetns = "netns:" // netns:INODE, of one that is named by its network namespace
)

// ContainerID returns the ID of the container in its engine or runtime, "" if it has none.
func (a *Attachment) ContainerID() string {
	switch parts := strings.Split(a.ID, ":"); {
	case strings.HasPrefix(a.ID, OwnerCNI) && len(parts) == 4:
		return parts[2]
	case len(parts) == 1:
		return a.ID
	}
	return ""
}

// Label returns what names the container for people: NAMESPACE/POD, the ID that its engine or
// runtime has for it, as short as Docker shows it, or the path of its namespace.
func (a *Attachment) Label() string {
	switch id := a.ContainerID(); {
	case strings.HasPrefix(a.ID, OwnerCNI) && a.Name != "":
		return a.Name
	case len(id) == 64:
		return id[:12]
	case id != "":
		return id
	case strings.HasPrefix(a.ID, OwnerNetns) && a.Netns != "":
		return a.Netns
	}
	return a.ID
}
