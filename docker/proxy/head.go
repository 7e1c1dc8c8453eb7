package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

const (
	// maxHead bounds a head in bytes: request or status line, and headers. It is the
	// default of net/http.
	maxHead = 1 << 20
	// maxLine bounds a line between chunks in bytes.
	maxLine = 16 << 10
)

var errTooLong = errors.New("too long")

// readHead reads a head, up to and including the empty line, without changing it.
func readHead(r *bufio.Reader) ([]byte, error) {
	var head []byte
	for {
		line, err := r.ReadSlice('\n')
		head = append(head, line...)
		switch {
		case len(head) > maxHead:
			return nil, fmt.Errorf("read a head of more than %d bytes: %w", maxHead, errTooLong)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			if len(head) > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		case bytes.HasSuffix(head, []byte("\n\r\n")), bytes.HasSuffix(head, []byte("\n\n")):
			return head, nil
		}
	}
}

// parseRequest parses the head of a request. The Body of the result must not be used.
func parseRequest(head []byte) (*http.Request, error) {
	return http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
}

// framing says where the body after a head ends.
type framing struct {
	chunked bool
	toEnd   bool  // the body ends with the connection
	length  int64 // bytes, if neither is set
}

func requestFraming(r *http.Request) framing {
	if len(r.TransferEncoding) > 0 {
		return framing{chunked: true}
	}
	return framing{length: max(0, r.ContentLength)}
}

// parseResponse parses the head of the response to a request. The Body of the result
// must not be used.
func parseResponse(head []byte, to *http.Request) (*http.Response, framing, error) {
	r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), to)
	if err != nil {
		return nil, framing{}, err
	}
	switch {
	case r.StatusCode < 200 || r.StatusCode == http.StatusNoContent || r.StatusCode == http.StatusNotModified || to.Method == http.MethodHead:
		return r, framing{}, nil
	case len(r.TransferEncoding) > 0:
		return r, framing{chunked: true}, nil
	case r.ContentLength >= 0:
		return r, framing{length: r.ContentLength}, nil
	}
	return r, framing{toEnd: true}, nil
}

// copyBody copies a body with its framing, byte for byte.
func copyBody(w io.Writer, r *bufio.Reader, f framing) error {
	switch {
	case f.toEnd:
		_, err := io.Copy(w, r)
		return err
	case !f.chunked:
		_, err := io.CopyN(w, r, f.length)
		return err
	}
	for {
		size, err := copyLine(w, r)
		if err != nil {
			return err
		}
		n, err := parseChunkSize(size)
		if err != nil {
			return err
		}
		if n == 0 {
			return copyTrailer(w, r)
		}
		if _, err := io.CopyN(w, r, n); err != nil {
			return err
		}
		if end, err := copyLine(w, r); err != nil {
			return err
		} else if strings.TrimRight(end, "\r\n") != "" {
			return fmt.Errorf("chunk of %d bytes: want a line end after it, got %.20q", n, end)
		}
	}
}

func copyTrailer(w io.Writer, r *bufio.Reader) error {
	for total := 0; total < maxHead; {
		line, err := copyLine(w, r)
		if err != nil {
			return err
		}
		if strings.TrimRight(line, "\r\n") == "" {
			return nil
		}
		total += len(line)
	}
	return fmt.Errorf("trailer of more than %d bytes: %w", maxHead, errTooLong)
}

// copyLine copies a line and returns it.
func copyLine(w io.Writer, r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxLine {
			return "", fmt.Errorf("line of more than %d bytes: %w", maxLine, errTooLong)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return "", err
		}
		_, err = w.Write(line)
		return string(line), err
	}
}

// parseChunkSize parses the line before a chunk (RFC 9112, section 7.1).
func parseChunkSize(line string) (int64, error) {
	size, _, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ";")
	size = strings.TrimRight(size, " \t")
	n, err := strconv.ParseUint(size, 16, 63)
	if err != nil || size[0] == '+' {
		return 0, fmt.Errorf("chunk size %.20q: want a hexadecimal number", size)
	}
	return int64(n), nil
}
