package policy

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/policy/rules"
)

func (k *nft) differs(r *rules.Rules, h hooks) (string, error) {
	t, err := k.begin()
	if err != nil {
		return "", err
	}
	defer t.CloseLasting()
	chains, sets, err := t.present()
	if err != nil {
		return "", err
	}
	want := k.wantedComments(r, h)
	if len(chains) != len(want) {
		return fmt.Sprintf("%s instead of %d", count.Of(len(chains), "chain", "chains"), len(want)), nil
	}
	for _, ch := range chains {
		if diff, err := t.chainDiffers(ch, want[ch.Name]); diff != "" || err != nil {
			return diff, err
		}
	}
	if len(sets) != len(r.Sets) {
		return fmt.Sprintf("%s instead of %d", count.Of(len(sets), "set", "sets"), len(r.Sets)), nil
	}
	for _, s := range r.Sets {
		if diff, err := t.setDiffers(s); diff != "" || err != nil {
			return diff, err
		}
	}
	if h == hooked {
		return t.bridgeDiffers()
	}
	return "", nil
}

// wantedComments returns the comments of the rules of each chain, in order.
func (k *nft) wantedComments(r *rules.Rules, h hooks) map[string][]string {
	want := make(map[string][]string)
	for name, ch := range r.Chains {
		want[name] = nil // an empty chain exists too
		for _, rule := range ch.Rules {
			if rule.Action != rules.Log || k.logRules == written {
				want[name] = append(want[name], comment(rule.String()+" # "+rule.Comment))
			}
		}
	}
	if h == hooked {
		for _, h := range inetHooks() {
			want[h.name] = h.comments()
		}
	}
	return want
}

func (h hook) comments() []string {
	comments := make([]string, len(h.rules))
	for i := range h.rules {
		comments[i] = comment(fmt.Sprintf("%s %d", h.name, i))
	}
	return comments
}

func (t transaction) chainDiffers(ch *nftables.Chain, want []string) (string, error) {
	present, err := t.GetRules(ch.Table, ch)
	if err != nil {
		return "", fmt.Errorf("list rules of chain %s: %w", ch.Name, err)
	}
	var have []string
	for _, r := range present {
		words, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		have = append(have, words)
	}
	if !slices.Equal(have, want) {
		return "the rules of chain " + ch.Name + " differ", nil
	}
	return "", nil
}

func (t transaction) setDiffers(s *rules.Set) (string, error) {
	present, err := t.GetSetElements(kernelSet(s))
	if errors.Is(err, unix.ENOENT) {
		return "no set " + s.Name, nil
	}
	if err != nil {
		return "", fmt.Errorf("list elements of set %s: %w", s.Name, err)
	}
	have := make(map[string]string, len(present))
	for _, e := range present {
		have[elementKey(e)] = string(verdictChain(e.Val))
	}
	want := slices.Concat(elementsOf(s, s.Entries()), rangesOf(s.Ranges))
	same := len(have) == len(want)
	for _, e := range want {
		chain, ok := have[elementKey(e)]
		same = same && ok && (e.VerdictData == nil || e.VerdictData.Chain == chain)
	}
	if !same {
		return fmt.Sprintf("the elements of set %s differ", s.Name), nil
	}
	return "", nil
}

func elementKey(e nftables.SetElement) string { return fmt.Sprintf("%v %v", e.Key, e.IntervalEnd) }

// verdictChain returns the chain of a verdict in the kernel's encoding, or nil if the verdict has
// none.
func verdictChain(verdict []byte) []byte {
	ad, err := netlink.NewAttributeDecoder(verdict)
	if err != nil {
		return nil
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			return bytes.TrimRight(ad.Bytes(), "\x00")
		}
	}
	return nil
}

func (t transaction) bridgeDiffers() (string, error) {
	all, err := t.ListChainsOfTableFamily(nftables.TableFamilyBridge)
	if err != nil {
		return "", fmt.Errorf("list chains of the bridge family: %w", err)
	}
	for _, h := range bridgeHooks() {
		i := slices.IndexFunc(all, func(ch *nftables.Chain) bool {
			return ch.Table.Name == bridgeTable.Name && ch.Name == h.name
		})
		if i < 0 {
			return "no chain " + h.name, nil
		}
		if diff, err := t.chainDiffers(all[i], h.comments()); diff != "" || err != nil {
			return diff, err
		}
	}
	return "", nil
}
