// Package names replicates the host names of containers and their addresses. A State is one peer's
// copy of the names of all peers; each peer announces the names of its own containers.
//
// It is a use of mesh/records, which has the protocol: a peer sorts its names into 256 buckets by a
// hash of the host name, and each bucket is one signed record. A name is deleted by a newer version
// of its bucket without it. Names of unreachable peers are kept for ten minutes but not shown.
//
// A Table indexes the shown names by name and by address. It answers only addresses that the
// announcing peer may name; see Table.
//
// Nothing here opens a socket, reads a clock or logs. A State is not safe for concurrent use; a
// Table is. Their zero values are not usable.
package names
