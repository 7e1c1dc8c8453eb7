// Command pod is the program in the pods of tests.
//
//	pod serve [PORT]        answers HTTP requests with its name and the client's
//	                        address, and echoes lines and datagrams on the next port
//	pod get URL             prints the answer, or fails after three seconds
//	pod gap ADDR SECONDS    sends a line every 50 ms over one connection, and prints
//	                        the longest time without an echo, in milliseconds
//	pod lost ADDR SECONDS   sends a datagram every 10 ms, and prints how many it sent
//	                        and how many echoes did not come within two seconds
//	pod pause               waits for SIGINT or SIGTERM
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := append(os.Args[1:], "", "", "")
	var err error
	switch args[0] {
	case "serve":
		err = serve(args[1])
	case "get":
		err = get(args[1])
	case "gap":
		err = gap(args[1], args[2])
	case "lost":
		err = lost(args[1], args[2])
	case "pause":
		pause()
	default:
		err = fmt.Errorf("want serve, get, gap, lost or pause, not %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pod:", err)
		os.Exit(1)
	}
}

func serve(port string) error {
	if port == "" {
		port = "8080"
	}
	p, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	echoes, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(p+1)))
	if err != nil {
		return err
	}
	go echo(echoes)
	datagrams, err := net.ListenPacket("udp", net.JoinHostPort("", strconv.Itoa(p+1)))
	if err != nil {
		return err
	}
	go echoDatagrams(datagrams)
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	go func() { // process 1 receives only signals that it has a handler for
		pause()
		os.Exit(0)
	}()
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintln(w, name, host)
	}))
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			io.Copy(c, c)
		}()
	}
}

func echoDatagrams(c net.PacketConn) {
	var b [1500]byte
	for {
		n, from, err := c.ReadFrom(b[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			c.WriteTo(b[:n], from)
		}
	}
}

func get(url string) error {
	c := http.Client{Timeout: 3 * time.Second}
	r, err := c.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	_, err = io.Copy(os.Stdout, r.Body)
	return err
}

func gap(addr, seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	go func() {
		for {
			if _, err := fmt.Fprintln(c, "x"); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	start := time.Now()
	end, last, longest := start.Add(time.Duration(n)*time.Second), start, time.Duration(0)
	lines := bufio.NewReader(c)
	for time.Now().Before(end) {
		if err := c.SetReadDeadline(end); err != nil {
			return err
		}
		_, err := lines.ReadString('\n')
		now := time.Now()
		longest, last = max(longest, now.Sub(last)), now
		if err != nil && now.Before(end) {
			return err
		}
	}
	fmt.Println(longest.Milliseconds())
	return nil
}

func lost(addr, seconds string) error {
	n, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	echoes := make(chan int)
	end := time.Now().Add(time.Duration(n) * time.Second)
	go func() {
		seen := make(map[uint32]bool)
		c.SetReadDeadline(end.Add(2 * time.Second))
		for b := make([]byte, 4); ; {
			_, err := c.Read(b)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err == nil {
				seen[binary.BigEndian.Uint32(b)] = true
			}
		}
		echoes <- len(seen)
	}()
	sent := 0
	for tick := time.NewTicker(10 * time.Millisecond); time.Now().Before(end); <-tick.C {
		c.Write(binary.BigEndian.AppendUint32(nil, uint32(sent))) // a loss is counted
		sent++
	}
	fmt.Println(sent, sent-<-echoes)
	return nil
}

// pause keeps the pod's namespaces and reaps orphaned processes, until SIGINT or SIGTERM.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGCHLD)
	for s := range signals {
		if s != unix.SIGCHLD {
			return
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}
