package api

import "strings"

// Beginnings of the owners of addresses, which are the IDs of attachments.
const (
	OwnerCNI   = "cni:"   // cni:NETWORK:CONTAINER:INTERFACE, of a container of the CNI plugin
	OwnerNetns = "netns:" // netns:INODE, of one that is named by its network namespace
)

// DescribeOwner returns words for an owner of addresses: "container 0123456789ab".
func DescribeOwner(owner string) string {
	switch kind, rest, _ := strings.Cut(owner, ":"); {
	case owner == Exposed:
		return "the host itself (weft expose)"
	case strings.HasPrefix(owner, OwnerCNI):
		a := Attachment{ID: owner}
		return "container " + shortID(a.ContainerID())
	case strings.HasPrefix(owner, OwnerNetns):
		return "the container with network namespace " + rest
	case kind == "docker":
		return "Docker"
	case rest == "" && len(owner) == 64:
		return "container " + shortID(owner)
	}
	return owner
}

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
	case id != "":
		return shortID(id)
	case strings.HasPrefix(a.ID, OwnerNetns) && a.Netns != "":
		return a.Netns
	}
	return a.ID
}
