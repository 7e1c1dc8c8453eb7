// Package firewalld asks the firewall daemon of Fedora, RHEL and openSUSE to accept what a
// bridge carries, as Docker does for its bridges.
//
// firewalld rejects what no rule of it accepts. An interface that is in no zone is treated
// as one of the default zone, so frames of containers are rejected where IP rules see them,
// and packets to the host itself everywhere. The zone trusted accepts everything.
//
// The interface is added until firewalld's next reload; whoever keeps it there adds it
// again then. An interface that the user put in a zone stays in it. The interface of
// firewalld is https://firewalld.org/documentation/man-pages/firewalld.dbus.html.
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/godbus/dbus/v5"
)

// Trusted is the zone that accepts everything.
const Trusted = "trusted"

const (
	service = "org.fedoraproject.FirewallD1"
	path    = "/org/fedoraproject/FirewallD1"
	zones   = "org.fedoraproject.FirewallD1.zone"
)

// Zone returns the zone that an interface is in, "" for none. runs reports whether firewalld
// runs on this host.
func Zone(ctx context.Context, iface string) (zone string, runs bool, err error) {
	runs, err = call(ctx, func(o dbus.BusObject) error {
		return o.CallWithContext(ctx, zones+".getZoneOfInterface", dbus.FlagNoAutoStart, iface).Store(&zone)
	})
	if err != nil {
		return "", runs, fmt.Errorf("ask firewalld for the zone of %s: %w", iface, err)
	}
	return zone, runs, nil
}

// Add puts an interface that is in no zone into a zone.
func Add(ctx context.Context, zone, iface string) error {
	runs, err := call(ctx, func(o dbus.BusObject) error {
		return o.CallWithContext(ctx, zones+".addInterface", dbus.FlagNoAutoStart, zone, iface).Err
	})
	if err == nil && !runs {
		err = errors.New("it does not run")
	}
	if err != nil {
		return fmt.Errorf("ask firewalld to put %s into zone %s: %w", iface, zone, err)
	}
	return nil
}

// Remove takes an interface out of a zone until firewalld's next reload. It does nothing if the
// interface is not in that zone, or firewalld does not run.
func Remove(ctx context.Context, zone, iface string) error {
	in, runs, err := Zone(ctx, iface)
	if err != nil || !runs || in != zone {
		return err
	}
	_, err = call(ctx, func(o dbus.BusObject) error {
		return o.CallWithContext(ctx, zones+".removeInterface", dbus.FlagNoAutoStart, zone, iface).Err
	})
	if err != nil {
		return fmt.Errorf("ask firewalld to remove %s from zone %s: %w", iface, zone, err)
	}
	return nil
}

// socket is where the bus of the system listens.
const socket = "/run/dbus/system_bus_socket"

// call calls f with firewalld's object. runs is false, and f is not called, if there is no
// bus of the system or no firewalld on it.
func call(ctx context.Context, f func(dbus.BusObject) error) (runs bool, err error) {
	c, err := dbus.Connect("unix:path="+socket, dbus.WithContext(ctx))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("connect to D-Bus: %w", err)
	}
	defer c.Close()
	if err := c.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, service).Store(&runs); err != nil || !runs {
		return false, err
	}
	return true, f(c.Object(service, path))
}
