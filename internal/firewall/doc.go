// Package firewall finds out whether other software's nftables rules drop what containers
// send, and which rule does.
//
// It follows a packet of a new flow through the chains of the forward hook, and knows only
// what is sure: that packet's interfaces, addresses and connection state. A rule that asks
// for a port or a protocol matches some packets at most, so it is passed over. One that asks
// for anything else that is not known, such as a mark, may match all: if it would accept
// them, nothing is said. What remains is an end that no rule prevents for packets in general:
//
//	chain filter_FORWARD                       packet: in weft, out weft, new
//	  ct state established accept              not new: no match
//	  iifname "lo" accept                      no match
//	  jump filter_FORWARD_ZONES                followed
//	    iifname "eth0" goto filter_FWD_public  no match
//	  tcp dport 22 accept                      unknown: passed over
//	  reject                                   the end
//
// Rules of iptables are seen too if iptables writes them by nftables, as it does by
// default on all distributions that are supported.
package firewall
