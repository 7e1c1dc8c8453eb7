// Package ring says which peer owns which address. Every peer holds a copy,
// changes it by signing records, and merges the records of others.
//
// # The lattice
//
// A ring is a set of records. Its genesis divides the address range among the
// first peers; a Grant says that From gives a range to To. For each address the
// grant with the greatest (version, id) rules, the genesis being version 0:
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
// that only grows. Only a peer that lost its disk or lies can make two grants of
// one version. They are ordered by their id, so everyone sees one owner.
//
// # Authority
//
// A copy accepts a record only if its author was allowed to make it. The rule is
// monotone, so that the order in which records arrive does not matter: a grant is
// accepted if each of its addresses was given to the giver by an accepted record
// of a lower version. It does not matter whether the giver still owns the range.
// If it did, a peer that holds the loser of two equal grants would refuse all
// records built upon the winner, and two copies that saw the records in another
// order would differ forever. The price is that a giver may give a range away
// again. An honest peer never does, because it signs only grants of ranges that
// it owns. If a merge takes an address from a peer that did not give it, the copy
// counts a conflict and the loser learns of it.
//
// # Leaving
//
// A peer's space can also go to another peer as a whole. A Removal says: all
// ranges that were or will be given to this incarnation of peer D belong to H. It
// names no ranges, so it also covers ranges that its signers had not heard of,
// and its size does not depend on how scattered they are. It is signed by D
// itself (reset), or by a majority of the owners (rmpeer), whose votes it
// carries. A Holder is a name together with its incarnation, the number of times
// that the name was removed before. So a host may come back under its old name,
// with a new key, and be given space again; a record that its former incarnation
// signed still concerns only the former incarnation.
//
//	(D,0) --removal--> (H,0) --removal--> (K,2)     the owner of all three is (K,2)
//
// Removals that form a circle (each half of a mesh removed the other) resolve
// to the lowest name in it. Of two removals of one incarnation, the one by the
// later ballot counts.
//
// # Voting
//
// Every receiver computes the electorate of a removal from the removal itself.
// Its Basis lists the records that ruled when it was proposed. The owners by those
// records may vote, except those named dead. So nobody can pick its own voters,
// except among the owners of some moment in the past. If no owner is left, the
// proposer lists the peers it sees. Package paxos makes the votes agree; this
// package only counts them.
//
// # Two rings
//
// A copy refuses records of another genesis: two islands that each made a ring
// have given the same addresses to different peers, and no order of records can
// resolve that. An Adoption, signed by any holder of one ring, makes all of its
// peers abandon that ring and wait for the other one. Crossed adoptions resolve to
// the lower genesis id.
//
// Nothing here is safe for concurrent use, opens a socket or reads a clock.
package ring
