package daemon

import "github.com/weft-net/weft/internal/api"

// usage returns an error of class api.Usage, made as by fmt.Errorf.
func usage(format string, args ...any) error { return api.Errorf(api.Usage, format, args...) }

// unavailable returns an error of class api.Unavailable, made as by fmt.Errorf.
func unavailable(format string, args ...any) error {
	return api.Errorf(api.Unavailable, format, args...)
}
