// Package names replicates the host names of containers and their addresses. A State is one peer's
// copy of the names of all peers; each peer announces the names of its own containers.
//
// # Records
//
// Only a peer itself announces its names. It sorts them into 256 buckets by a hash of the host
// name. Each bucket that has or had names is one signed record. A change creates a new record of
// the bucket with the peer's next version:
//
//	owner    incarnation   bucket    version   names
//	A        1700000000    0x07      12        web 10.32.0.1, db 10.32.0.2
//	                       0x31      9         (none any more)
//	B        1700000100    0x07      3         web 10.36.0.1
//
// Merging takes the highest incarnation of each owner, and within it the highest version of each
// bucket. That is a maximum in each place, so merging is commutative, associative and idempotent.
// Only the owner counts its versions, so clocks of different hosts are never compared.
//
// # Deletion
//
// The tombstone of a name is its bucket without the name. It lasts as long as the incarnation, so
// it outlives every copy of the deleted name. Tombstones cannot accumulate: an owner has 256
// buckets, however many names it had.
//
// # Incarnations
//
// A router that restarts does not know its former versions. It begins a new incarnation, whose
// number is the time of its start, with a record without names. That record supersedes all records
// of former incarnations. If the clock went back, other peers still have records of a higher
// incarnation and send them; the router then begins an incarnation above it.
//
// # Accepted records
//
// A record is accepted if the mesh reaches its owner and the record is signed with the key by
// which the mesh knows the owner. Records that arrive before the mesh reports their owner wait in
// a bounded buffer. If the buffer is full, they are dropped, and digests repair the loss later.
// The names of an unreachable owner are kept but not shown, and are dropped after ForgetAfter.
// Then no peer can bring them back, because records of unreachable owners are not accepted.
//
// Nothing here opens a socket, reads a clock or logs. A State is not safe for concurrent use; a
// Table is. Their zero values are not usable.
package names
