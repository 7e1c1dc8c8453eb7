package main

import (
	"fmt"
	"regexp"
	"time"
)

// described matches the output of git describe --tags --long --dirty.
var described = regexp.MustCompile(`^v(\d+\.\d+\.\d+)(?:-([a-z]+[0-9.]*))?-(\d+)-g([0-9a-f]+)(-dirty)?$`)

// bare matches the output of git describe --always --dirty without a tag.
var bare = regexp.MustCompile(`^([0-9a-f]+)(-dirty)?$`)

// packageVersion converts the output of git describe to a version that dpkg and rpm sort
// correctly:
//
//	v1.2.0-rc1-0-g3f2c  1.2.0~rc1         before 1.2.0
//	v1.2.0-0-g3f2c      1.2.0
//	v1.2.0-7-g3f2c      1.2.0+7.g3f2c     after 1.2.0
//	3f2c                0.0.0+20261126073000.g3f2c, with the time of the commit
//
// Uncommitted changes add .dirty. Without git the version is 0.0.0.
func packageVersion(description string, at time.Time) (string, error) {
	if description == "" {
		return "0.0.0", nil
	}
	if m := bare.FindStringSubmatch(description); m != nil {
		return "0.0.0+" + at.UTC().Format("20060102150405") + ".g" + m[1] + dirty(m[2]), nil
	}
	m := described.FindStringSubmatch(description)
	if m == nil {
		return "", fmt.Errorf("output of git describe %q: want a tag like v1.2.3 or v1.2.3-rc1", description)
	}
	v := m[1]
	if m[2] != "" {
		v += "~" + m[2]
	}
	if m[3] != "0" || m[5] != "" {
		v += "+" + m[3] + ".g" + m[4] + dirty(m[5])
	}
	return v, nil
}

func dirty(mark string) string {
	if mark == "" {
		return ""
	}
	return ".dirty"
}
