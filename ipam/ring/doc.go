// Package ring says which peer owns which address. Every peer holds a copy,
// changes it by signing records, and merges the records of others.
//
// # The lattice
//
// A ring is a set of records. Its genesis divides the universe among the first
// peers; a Grant says that From gives a range to To. For each address the grant
// with the greatest (version, id) rules, the genesis being version 0:
//
//	version
//	   2               |--- C->A ---|
//	   1        |------- A->C -------------|     |-- B->A --|
//	   0   |------------ A -------------|------------ B --------------|  genesis
//	       +----+------+------------+---+--+-----+----------+---------+
//	owner  |  A |   C  |      A     |  C   |  B  |    A     |    B    |
//
// Merging is the union of the sets, so it is commutative, associative and
// idempotent, and the owner of an address is a pointwise maximum over a set
// that only grows. Two grants of one version, which only a peer that lost its
// memory or lies can make, are ordered by their id: everyone sees one owner.
//
// # Who may speak
//
// A record that others hold must be one that its author was allowed to make.
// The rule is monotone, so that the order in which records arrive does not
// matter: a grant is accepted if each of its addresses was given to the giver
// by an accepted record of a lower version. It does not ask whether the giver
// still owns the range. If it did, a peer that holds the loser of two equal
// grants would refuse all that was built upon the winner, and two copies that
// saw the records in another order would differ for ever. The price: a giver
// may speak again of what it gave away. An honest one never does, as it signs
// only what it owns; when a merge takes an address from somebody who did not
// give it, the copy counts a conflict and the loser learns of it.
//
// # Leaving
//
// A peer's space can also go to another as a whole. A Removal says: whatever
// was or will be given to this life of peer D belongs to H. It names no
// ranges, so it also covers those that its signers had not heard of, and it is
// small however scattered they are. It is signed by D itself (reset), or by a
// majority of the owners (rmpeer), whose votes it carries. A Holder is a name
// together with the number of times the name was removed, its life, so a host
// may come back under its old name, with a new key, and be given space anew;
// what its former life signs late is still the former life's.
//
//	(D,0) --removal--> (H,0) --removal--> (K,2)     the owner of all three is (K,2)
//
// Removals that form a circle (each half of a mesh removed the other) resolve
// to the lowest name in it. Of two removals of one life, the one by the later
// ballot counts.
//
// # Voting
//
// The electorate of a removal is computed by every receiver from the removal
// itself: its Basis lists the records that ruled when it was proposed, and the
// owners they give, less those named dead, are who may vote. So nobody can pick
// its own voters, except among owners of some moment in the past. If no owner
// is left, the proposer lists the peers it sees. Package paxos makes the votes
// agree; here they are only counted.
//
// # Two rings
//
// A copy refuses records of another genesis: two islands that each made a ring
// have given the same addresses to different peers, and no order can make that
// right. An Adoption, signed by any holder of the one ring, tells all of its
// peers to put it on the shelf and wait for the other; crossed adoptions
// resolve to the lower genesis id.
//
// Nothing here is safe for concurrent use, opens a socket or reads a clock.
package ring
