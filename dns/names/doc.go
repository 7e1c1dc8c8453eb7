// Package names holds which host names have which addresses: one peer's copy
// of what all peers say, each for its own containers.
//
// # Records
//
// A peer is the only one to speak of its own names. It sorts them into 256
// buckets by a hash of the host name, and signs each bucket that has or had
// names as one record. A change makes a new record of the bucket with the
// peer's next version:
//
//	owner    life          bucket    version   names
//	A        1700000000    0x07      12        web 10.32.0.1, db 10.32.0.2
//	                       0x31      9         (none any more)
//	B        1700000100    0x07      3         web 10.36.0.1
//
// Merging takes, for each owner, the highest life; within it, for each bucket,
// the highest version. That is a maximum in each place, so it is commutative,
// associative and idempotent. Versions are counted by their owner alone, so no
// two clocks are ever compared.
//
// # Deletion
//
// The tombstone of a name is its bucket without it. It lives as long as its
// owner's life does, so that it cannot be outlived by what it buried, and it
// cannot pile up: an owner has 256 buckets, however many names came and went.
//
// # Lives
//
// A router that starts knows nothing of the versions that it had. It begins a
// new life, whose number is the time of its start, with a record that says that
// it has no names; all of its former life ends with that. If the clock went
// back, the others still have records of a life with a higher number, and send
// them; then the router begins a life above it.
//
// # Who is heard
//
// A record is taken from an owner that the mesh reaches, if it is signed with
// the key that the mesh knows the owner by. What comes before the mesh has shown
// its owner waits in a room of bounded size; what does not fit is repaired by
// the digests later. The names of an owner that cannot be reached are kept, but
// not shown; after ForgetAfter they are dropped. Nobody can bring them back then,
// as an owner that is not reached is not heard.
//
// Nothing here opens a socket, reads a clock or logs. A State is not safe for
// concurrent use, a Table is.
package names
