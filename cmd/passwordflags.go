package cmd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

const maxPasswordFile = 64 << 10 // bytes

// passwordFlags are the flags of weft launch on passwords.
type passwordFlags struct {
	password, file string
	accept         []string // files with passwords that are accepted only
}

func (f *passwordFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.password, "password", "", "password of the mesh; other users see it here, so prefer WEFT_PASSWORD or a file")
	fs.StringVar(&f.file, "password-file", "", "file with the password, followed while the router runs; further lines are accepted too")
	fs.StringArrayVar(&f.accept, "accept-password-file", nil, "file with passwords that are accepted but not offered (repeatable)")
}

// read returns all passwords, the one to offer first.
func (f *passwordFlags) read() ([]string, error) {
	passwords := PasswordLines(f.password)
	files := f.accept
	switch {
	case f.password != "" && f.file != "":
		return nil, errors.New("give the password by --password or by --password-file, not both")
	case f.password != "" && len(passwords) == 0:
		return nil, errors.New("--password: all lines are empty")
	case f.file != "":
		files = append([]string{f.file}, files...)
	case len(files) > 0 && f.password == "":
		return nil, errors.New("--accept-password-file requires --password or --password-file")
	}
	for _, name := range files {
		lines, err := readPasswords(name)
		if err != nil {
			return nil, err
		}
		for _, p := range lines {
			if !slices.Contains(passwords, p) {
				passwords = append(passwords, p)
			}
		}
	}
	return passwords, nil
}

// readPasswords returns the lines of a file that are not empty, at least one.
// Blanks at either end are part of a password.
func readPasswords(name string) ([]string, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read passwords: %w", err)
	}
	if info.Size() > maxPasswordFile {
		return nil, fmt.Errorf("read passwords: %s has %d bytes, more than %d", name, info.Size(), maxPasswordFile)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read passwords: %w", err)
	}
	lines := PasswordLines(string(b))
	if len(lines) == 0 {
		return nil, fmt.Errorf("read passwords: %s has none", name)
	}
	return lines, nil
}

// PasswordLines returns the passwords in a text: its lines that are not empty.
func PasswordLines(text string) (lines []string) {
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSuffix(line, "\r"); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
