// Package records replicates a map of signed records. Each use of it (host names, bindings)
// has a Map of its own, registered as one gossip.Channel. A use brings a name for its
// signatures, a function that parses payloads, and one that is called with each change. It
// needs no protocol code.
//
// # Records
//
// Only a peer itself announces its records. It has 256 buckets, and each bucket that has or
// had a payload is one signed record. A change creates a new record of the bucket with the
// owner's next version:
//
//	owner    incarnation   bucket    version   payload
//	A        1700000000    0x07      12        web 10.32.0.1, db 10.32.0.2
//	                       0x31      9         (empty: deleted)
//	B        1700000100    0x07      3         web 10.36.0.1
//
// Merging takes the highest incarnation of each owner, and within it the highest version of
// each bucket. That is a maximum in each place, so merging is commutative, associative and
// idempotent, and a replayed record loses. Only the owner counts its versions, so clocks of
// different hosts are never compared to decide which record is newer.
//
// # Deletion
//
// A bucket is deleted by a newer version without a payload. It lasts as long as the
// incarnation, so it outlives every copy of what it deletes. Such records cannot
// accumulate: an owner has 256 buckets.
//
// # Incarnations
//
// A router that restarts does not know its former versions. It begins a new incarnation,
// whose number is the time of its start in microseconds, with at least one record. That
// supersedes all records of former incarnations. If the clock went back, other peers still
// have records of a higher incarnation and send them; the router then begins an incarnation
// above it.
//
// An incarnation plus a version may not be more than a day ahead of the clock, so that
// nobody can use up the numbers of a name: a peer makes less than one version a
// microsecond.
//
// # Bounds
//
// Peers cost nothing: a member can make up any number of keys. Therefore:
//
//   - A record is stored only if its owner is in the topology (SetOwners) and the record is
//     signed with the key of the owner's topology entry. A derived name accepts only the key
//     from which it is derived.
//   - A record that arrives before the topology entry of its owner waits for a short time in
//     a waitlist of limited size, in which each neighbour has a fair share. It is neither shown
//     nor passed on.
//   - Buckets, owners and the whole Map have limits. They count memory, not only bytes on
//     the wire. Beyond the limit of the whole Map, owners that the topology has lost are
//     dropped first, then large owners that came through neighbours that fill much of the
//     Map. An owner that was dropped is not taken again for a minute. This peer's own
//     records are never dropped.
//   - Each neighbour can make this peer check a limited number of signatures a second.
//
// Records of an owner that leaves the topology are kept for ForgetAfter, but are neither
// shown nor part of the digest. A partition that heals sooner costs no exchange of records.
// Later they come back by digests.
//
// # Digests
//
// Every record belongs to one of 2,048 rows by a hash of its owner and bucket, and each row
// has a sum of hashes of its records. Copies first compare eight bytes. If these differ, the
// rows are compared, and only the records of rows that differ are sent.
//
// Nothing here opens a socket, reads a clock or logs: times are arguments. A Map is not safe
// for concurrent use, and its zero value is not usable.
package records
