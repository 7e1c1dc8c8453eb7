// Package groups replicates which hosts want which IP multicast groups, so that a frame to a group goes to
// these hosts only. Each peer announces the groups of its own host. It is a use of mesh/records, which has
// the protocol.
//
//	containers of host A want 239.1.2.3 --- signed record ---> all peers: frames to 239.1.2.3 go to A
//
// A host that announces nothing yet gets the frames of all groups, as one whose router has just been started,
// and so does one that says that it wants all. A member that lies can ask for groups, or for none: that is
// a matter of its own host. What it says of its host takes no frame from another one.
//
// Bucket 0 of a peer has one byte: bit 0 is set if the host wants all groups, and the reports of
// containers of other hosts too, for a multicast router. Buckets 1 to 16 have its groups, sorted into
// them by a hash:
//
//	n * | u8, 4 or 16 | address | in ascending order
//
// Nothing here opens a socket, reads a clock or logs. A State is not safe for concurrent use.
package groups
